"""What the library has decided about loans. Plain Python: the models call it, and its tests need no Odoo."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal

LOAN_DAYS = 28
GRACE_DAYS = 2
FEE_PER_DAY = Decimal("0.25")
FEE_LIMIT = Decimal("10.00")
MAX_OPEN_LOANS = 5
CLOSED_WEEKDAYS = frozenset({6})  # Sunday

ISBN_LENGTH = 13


def due_date(start: date, days: int = LOAN_DAYS) -> date:
    """The first open day that is at least ``days`` after the start."""
    due = start + timedelta(days=days)
    while due.weekday() in CLOSED_WEEKDAYS:
        due += timedelta(days=1)
    return due


def days_late(due: date, returned: date) -> int:
    """Whole days after the due date; 0 for a book that came back in time."""
    return max(0, (returned - due).days)


def late_fee(due: date, returned: date) -> Decimal:
    """A quarter a day once the days of grace are over, but never more than the limit."""
    charged = days_late(due, returned) - GRACE_DAYS
    if charged <= 0:
        return Decimal("0.00")
    return min(charged * FEE_PER_DAY, FEE_LIMIT)


def may_borrow(open_loans: int, late_loans: int) -> bool:
    """Whether a reader may take one more book."""
    return open_loans < MAX_OPEN_LOANS and late_loans == 0


def is_isbn(text: str) -> bool:
    """Whether this is an ISBN-13 with a right check digit; hyphens and spaces are allowed."""
    digits = text.replace("-", "").replace(" ", "")
    if len(digits) != ISBN_LENGTH or not digits.isdecimal():
        return False
    total = sum(int(digit) * (3 if place % 2 else 1) for place, digit in enumerate(digits))
    return total % 10 == 0
