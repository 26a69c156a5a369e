"""One module for each suite: `suite(work, quick)` measures in the directory `work` and gives rows (see `common.row`) and the raw figures."""
