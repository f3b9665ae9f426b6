from . import book, loan
