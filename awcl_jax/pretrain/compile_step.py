"""Compile the step of a pretraining run and keep it, for the run that asked.

A compiler of a ResNet's step takes hundreds of megabytes that its process never gives back, so a run asks this one,
which ends: `runner.compile_aside`.
"""

from awcl_jax.runtime import child_process, memory


def main() -> None:
    """Read a request, and compile and keep what it asks for."""
    request = child_process.read_request()
    memory.keep_freed_pages()
    # Imported here, because what JAX imports starts threads.
    import numpy as np

    from awcl_jax.config.fields import from_dict
    from awcl_jax.config.pretraining import default_config
    from awcl_jax.pretrain import runner
    from awcl_jax.runtime import kept_programs, sharding
    from awcl_jax.runtime.cache import keep_compiled_programs
    from awcl_jax.train import harness, initial_state

    memory.free_before_the_next()  # as the run, whose settings are part of the program's key
    keep_compiled_programs()
    kept_programs.compile_anew()
    config = from_dict(request["config"], default_config())
    programs = runner.make_programs(config, granularities=request["granularities"])
    mesh = sharding.make_mesh()
    step = harness.step_on(mesh, programs.body, via=config.train.mapping)
    queue = runner.make_queue(config, np.zeros((0, 2) if request["granularities"] == 2 else 0, np.int32))
    with memory.gc_paused():
        shapes = initial_state.state_shapes(programs.model, programs.optimiser, queue=queue)
        batch = sharding.batch_shapes(request["batch"], mesh)
        sharding.compile_step(step, sharding.replicated_shapes(shapes, mesh), batch, mesh=mesh, name=programs.name)


if __name__ == "__main__":
    main()
