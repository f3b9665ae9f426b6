# mypy: ignore-errors

from odoo import api, fields, models
from odoo.exceptions import ValidationError

from .. import rules  # noqa: TID252 - Odoo's way to reach its own add-on


class Book(models.Model):
    _name = "library.book"
    _description = "Book"
    _inherit = ["mail.thread"]
    _order = "name"

    name = fields.Char(string="Title", required=True, tracking=True)
    author = fields.Char()
    isbn = fields.Char(string="ISBN", copy=False)
    copies = fields.Integer(default=1)
    loan_ids = fields.One2many("library.loan", "book_id", string="Loans")
    available = fields.Integer(compute="_compute_available")

    _sql_constraints = [
        ("isbn_unique", "unique (isbn)", "Another book has this ISBN."),
        ("copies_positive", "check (copies > 0)", "A book has at least one copy."),
    ]

    @api.depends("copies", "loan_ids.date_returned")
    def _compute_available(self):
        groups = self.env["library.loan"].read_group(
            [("book_id", "in", self.ids), ("date_returned", "=", False)], ["book_id"], ["book_id"]
        )
        lent = {group["book_id"][0]: group["book_id_count"] for group in groups}
        for book in self:
            book.available = book.copies - lent.get(book.id, 0)

    @api.constrains("isbn")
    def _check_isbn(self):
        for book in self:
            if book.isbn and not rules.is_isbn(book.isbn):
                raise ValidationError(self.env._("%s is not an ISBN-13.", book.isbn))
