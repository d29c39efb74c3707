"""Encoders on the Hugging Face hub, `hf://USER/NAME[@REVISION]`, accepted where a folder of an export is.

The only module that imports the hub's client, an extra, and only when it is needed. Only files of an export are
downloaded, and nothing that is downloaded is executed.
"""

import contextlib
import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from awcl_jax.runtime.bucket import alone
from awcl_jax.runtime.cache import cache_folder
from awcl_jax.runtime.errors import InputError, first_line
from awcl_jax.runtime.files import atomic_write

SCHEME = "hf://"

_NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_FILES = ("preprocessing.json", "encoder.safetensors", "encoder.jax")
_OF_AN_EXPORT = (*_FILES, "encoder.onnx", "encoder_torch.py")


def on_hub(path: str | os.PathLike[str]) -> bool:
    """Return whether this is an address on the hub."""
    return os.fspath(path).startswith(SCHEME)


def fetch(url: str) -> Path:
    """Return a folder of this host with the files of an exported encoder on the hub.

    The client keeps what it downloads (`HF_HOME`); without a network, it uses that.

    Args:
      url: `hf://USER/NAME`, or `hf://USER/NAME@REVISION` for a branch, tag or commit.

    Raises:
      InputError: the client is not installed, or the address is invalid, does not exist or cannot be reached.
      OSError: there is not enough space.
    """
    _require_client(url)
    match = re.fullmatch(rf"{SCHEME}({_NAME})(?:@([\w./-]+))?", url.rstrip("/"))
    if not match:
        raise InputError(f"An encoder on the hub must be hf://USER/NAME or hf://USER/NAME@REVISION; got {url!r}.")
    import huggingface_hub

    with _trouble_in_words(url, "read"):
        snapshot = Path(huggingface_hub.snapshot_download(match[1], revision=match[2], allow_patterns=list(_FILES)))
    if not (snapshot / _FILES[0]).is_file():
        raise InputError(f"{url} is not an encoder of awcl_jax.export: {_FILES[0]} not found.")
    # The client's folder has links, which the readers of an export refuse. It is named by the commit.
    folder = cache_folder("hub").joinpath(*match[1].split("/"), snapshot.name)
    with alone(folder):
        folder.mkdir(exist_ok=True)
        for name in _FILES:
            if (snapshot / name).is_file() and not (folder / name).is_file():
                with atomic_write(folder / name) as part:
                    shutil.copyfile(snapshot / name, part)
    return folder


def require_push(name: str) -> None:
    """Check that an encoder can be pushed, before it is exported; nothing is sent.

    Raises:
      InputError: the name is not USER/NAME or not allowed, the client is not installed, or nobody is signed in.
    """
    if not re.fullmatch(_NAME, name):
        raise InputError(f"--push must be USER/NAME, the name of a model on the hub; got {name!r}.")
    _require_client("--push")
    import huggingface_hub
    from huggingface_hub import errors, utils

    try:
        utils.validate_repo_id(name)
    except errors.HFValidationError as error:
        raise InputError(f"--push must be a name that the hub allows; got {name!r} ({first_line(error)})") from None
    token = huggingface_hub.get_token()
    if token is None:
        raise InputError("--push needs you to sign in to the hub. Run `hf auth login`, or set HF_TOKEN.")
    if not (token.isascii() and token.isprintable()):  # it is sent in a header
        raise InputError("The token of the hub has characters that no token has. Run `hf auth login`, or set HF_TOKEN.")


def push(folder: Path, name: str, *, public: bool, message: str) -> str:
    """Upload a folder to a model on the hub, which is created if it does not exist.

    Files of an earlier export that this one lacks are deleted there: they are of another encoder than the new card, and
    readers might take them. Other files stay.

    Args:
      folder: its files; the card is `README.md`.
      name: USER/NAME.
      public: let everybody read it. Without it, only the owner of a new model can, and an existing public model is
        refused.
      message: of the commit.

    Returns:
      The address of the model.

    Raises:
      InputError: the hub cannot be reached or refuses; the model is public without `public`.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    with _trouble_in_words(name, "written"):
        api.create_repo(name, private=not public, exist_ok=True)
        if not public and not api.model_info(name).private:
            raise InputError(f"{name} is public on the hub. Add --public to push there, or choose another name.")
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=message, delete_patterns=list(_OF_AN_EXPORT))
    return f"{api.endpoint}/{name}"


def _require_client(what: str) -> None:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError(f"{what} needs the package huggingface_hub. Run pip install 'awcl_jax[hub]'.")


@contextlib.contextmanager
def _trouble_in_words(what: str, action: str) -> Iterator[None]:
    """Turn the client's errors into one line.

    Raises:
      InputError: for all of them.
    """
    from huggingface_hub import errors

    try:
        yield
    except InputError:
        raise
    except errors.HFValidationError as error:
        raise InputError(f"{what} is not a name that the hub allows ({first_line(error)}). Check the name.") from None
    except errors.RevisionNotFoundError:
        raise InputError(f"{what} has no such revision. Use a branch, a tag or a commit of it.") from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"{what} does not exist on the hub, or you may not see it. Check the name; for a private model run "
            "`hf auth login` or set HF_TOKEN."
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "none"
        reason = f"status {status}: {first_line(error)[:200]}"
        raise InputError(f"{what} cannot be {action} ({reason}). Check your rights, or try again later.") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise InputError(
            f"{what} cannot be {action}: the hub cannot be reached, or HF_HUB_OFFLINE is set, and there is no copy on "
            "this host. Connect to the network, or pass a folder."
        ) from None
    except OSError as error:
        if type(error) is OSError:  # of this host, such as a full disk
            raise
        raise InputError(f"{what} cannot be {action} ({first_line(error)[:200]}). Check the network.") from None
    except Exception as error:  # of the client's library for HTTP
        raise InputError(f"{what} cannot be {action} ({first_line(error)[:200]}). Check the network.") from None
