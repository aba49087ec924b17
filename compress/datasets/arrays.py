"""Names for the arrays that rows are made of."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
Texts = npt.NDArray[np.object_]
Positions = npt.NDArray[np.intp] | npt.NDArray[np.int64] | slice
