# mypy: ignore-errors

from odoo import api, fields, models
from odoo.exceptions import ValidationError

from .. import rules  # noqa: TID252 - Odoo's way to reach its own add-on


class Loan(models.Model):
    _name = "library.loan"
    _description = "Loan"
    _order = "date_start desc"

    book_id = fields.Many2one("library.book", required=True, ondelete="restrict")
    partner_id = fields.Many2one("res.partner", string="Reader", required=True)
    date_start = fields.Date(required=True, default=fields.Date.context_today)
    date_due = fields.Date(compute="_compute_date_due", store=True)
    date_returned = fields.Date()
    fee = fields.Float(digits=(6, 2), compute="_compute_fee", store=True)

    @api.depends("date_start")
    def _compute_date_due(self):
        for loan in self:
            loan.date_due = rules.due_date(loan.date_start) if loan.date_start else False

    @api.depends("date_due", "date_returned")
    def _compute_fee(self):
        for loan in self:
            known = loan.date_due and loan.date_returned
            loan.fee = rules.late_fee(loan.date_due, loan.date_returned) if known else 0

    @api.constrains("partner_id", "date_returned")
    def _check_may_borrow(self):
        today = fields.Date.context_today(self)
        for loan in self.filtered(lambda each: not each.date_returned):
            others = self.search(
                [("partner_id", "=", loan.partner_id.id), ("date_returned", "=", False), ("id", "!=", loan.id)]
            )
            late = others.filtered(lambda each: rules.days_late(each.date_due, today))
            if not rules.may_borrow(len(others), len(late)):
                raise ValidationError(self.env._("%s may not borrow another book.", loan.partner_id.name))

    def action_return(self):
        self.write({"date_returned": fields.Date.context_today(self)})
