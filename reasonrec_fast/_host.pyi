import numpy as np
from numpy.typing import NDArray

def build_graph(
    users: NDArray[np.int64], items: NDArray[np.int64], num_users: int, num_items: int, threads: int
) -> tuple[NDArray[np.signedinteger], ...]: ...
