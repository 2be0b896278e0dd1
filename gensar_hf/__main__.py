"""`python -m gensar_hf` is the command `gensar`."""

from gensar_hf.cli import main

raise SystemExit(main())
