"""How many devices lie along each axis of the mesh; imports no JAX."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """How many devices lie along each axis.

  Attributes:
    data: copies of the model; 0 takes what the other axes leave.
    fsdp: devices that share parameters, moments and averages.
    tensor: devices that share heads and hidden widths.
    context: devices that share the tokens of a video.
    slices: parts of the machine between which the network is slow.
  """

  data: int = 0
  fsdp: int = 1
  tensor: int = 1
  context: int = 1
  slices: int = 1
