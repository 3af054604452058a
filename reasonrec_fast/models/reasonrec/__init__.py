"""ReasonRec (arXiv 2606.28357): observe, deliberate, act."""
