"""``python -m audit_operator``: the same as the console script ``audit-operator``."""

from audit_operator.cli import main

if __name__ == "__main__":
    main()
