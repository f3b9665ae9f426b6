from __future__ import annotations

import unittest
from datetime import date, timedelta
from decimal import Decimal

from .. import rules  # noqa: TID252 - the package is odoo.addons.library_loans under Odoo

MONDAY = date(2026, 3, 2)


class TestDueDate(unittest.TestCase):
    def test_four_weeks(self) -> None:
        self.assertEqual(rules.due_date(MONDAY), date(2026, 3, 30))

    def test_a_sunday_becomes_the_monday_after(self) -> None:
        self.assertEqual(rules.due_date(MONDAY, days=6), date(2026, 3, 9))

    def test_across_a_leap_day(self) -> None:
        self.assertEqual(rules.due_date(date(2028, 2, 1)), date(2028, 2, 29))

    def test_never_on_a_closed_day(self) -> None:
        for days in range(400):
            with self.subTest(days=days):
                self.assertNotIn(rules.due_date(MONDAY, days).weekday(), rules.CLOSED_WEEKDAYS)


class TestLateFee(unittest.TestCase):
    def fee(self, days: int) -> Decimal:
        return rules.late_fee(MONDAY, MONDAY + timedelta(days=days))

    def test_nothing_on_the_due_date(self) -> None:
        self.assertEqual(self.fee(0), Decimal("0.00"))

    def test_nothing_when_early(self) -> None:
        self.assertEqual(self.fee(-10), Decimal("0.00"))

    def test_nothing_within_the_days_of_grace(self) -> None:
        self.assertEqual(self.fee(rules.GRACE_DAYS), Decimal("0.00"))

    def test_a_quarter_a_day_after_them(self) -> None:
        self.assertEqual(self.fee(rules.GRACE_DAYS + 4), Decimal("1.00"))

    def test_has_a_limit(self) -> None:
        self.assertEqual(self.fee(365), rules.FEE_LIMIT)

    def test_early_is_not_negatively_late(self) -> None:
        self.assertEqual(rules.days_late(MONDAY, MONDAY - timedelta(days=3)), 0)


class TestMayBorrow(unittest.TestCase):
    def test_the_first_book(self) -> None:
        self.assertTrue(rules.may_borrow(open_loans=0, late_loans=0))

    def test_not_more_than_the_limit(self) -> None:
        self.assertTrue(rules.may_borrow(rules.MAX_OPEN_LOANS - 1, 0))
        self.assertFalse(rules.may_borrow(rules.MAX_OPEN_LOANS, 0))

    def test_not_while_one_is_late(self) -> None:
        self.assertFalse(rules.may_borrow(open_loans=1, late_loans=1))


class TestIsbn(unittest.TestCase):
    def test_right(self) -> None:
        for text in ("9780306406157", "978-0-306-40615-7", "978 3 16 148410 0"):
            with self.subTest(text):
                self.assertTrue(rules.is_isbn(text))

    def test_wrong(self) -> None:
        for text in ("", "9780306406158", "978030640615", "97803064061570", "978030640615X"):
            with self.subTest(text):
                self.assertFalse(rules.is_isbn(text))
