"""The phantom: ultrasound scans from a small physical model, for trying and testing everything without a patient.

biometry     how big a fetus is at its age
unevenness   how tissue and boundaries vary from place to place
outlines     shapes, tissues, and the medium they are painted into
planes       the fourteen planes of the fetus as outlines
heart        the adult heart: another domain, to learn on one and test on the other
surroundings what is around a plane
domains      the two of them, with their machines
examination  machine, body wall, pose and path of a scan, drawn by lot
acoustics    speckle, point spread, attenuation, shadow, time gain, log compression
display      beams, scan conversion, the machine's screen
scan         all of it put together: the frames of a scan
builder      the TFDS dataset
"""

from awcl_jax.ingest.phantom.builder import Phantom, PhantomConfig
from awcl_jax.ingest.phantom.scan import Frame, Scan

__all__ = ["Frame", "Phantom", "PhantomConfig", "Scan"]
