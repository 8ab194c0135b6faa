"""Where tests run must not matter to them."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell without job control has what it puts into the background ignore Ctrl-C, and processes pass that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
