"""python -m sardine_doctor"""

import sys

from sardine_doctor import main

sys.exit(main())
