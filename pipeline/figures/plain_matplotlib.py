"""matplotlib, imported without the `matplotlibrc` of the working folder, which it obeys first.

That folder may be a stranger's: a backend of theirs, TeX, a FIFO that is waited for. The user's own
settings count as ever. Imported before anything else of this room; where a program has matplotlib
already, its settings are that program's.
"""

import logging
import os
from contextlib import chdir, nullcontext

# The folder is left only where there is such a file: other threads may resolve a path meanwhile.
with chdir("/") if os.path.lexists("matplotlibrc") else nullcontext():
    import matplotlib  # noqa: F401

# That it looks for fonts, once on each machine, is no news of a training.
logging.getLogger("matplotlib.font_manager").setLevel(logging.WARNING)
