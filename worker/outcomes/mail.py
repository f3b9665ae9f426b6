"""Mails by SMTP, with TLS unless the host allows to do without."""

from __future__ import annotations

import smtplib
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime

from worker.model.delivery import Delivery
from worker.outcomes.http import ID_HEADER
from worker.outcomes.messages import mail_text, plain, subject
from worker.outcomes.settings import Mail
from worker.outcomes.wire import NotSent, Wire

_READY, _PERMANENT = 220, 500
_LOGIN = frozenset({530, 534, 535})
"""Answers about the login, which an operator may repair while messages wait."""


def mail_message(mail: Mail, delivery: Delivery, run_url: str | None) -> EmailMessage:
    """The mail. Its Message-ID is the same in each attempt."""
    domain = mail.sender.rpartition("@")[2]
    message = EmailMessage(policy=SMTP)
    message["From"] = Address("ops-worker", addr_spec=mail.sender)
    message["To"] = ", ".join(mail.to)
    message["Subject"] = plain(subject(delivery), 200)
    message["Date"] = format_datetime(delivery.created_at)
    message["Message-ID"] = f"<{delivery.delivery_id}@{domain}>"
    message["Auto-Submitted"] = "auto-generated"
    message[ID_HEADER] = delivery.delivery_id
    message.set_content(mail_text(delivery, run_url))
    return message


def send(mail: Mail, password: str | None, message: EmailMessage, wire: Wire) -> None:
    """Sends the mail to all recipients. Blocking: for a thread. Raises ``NotSent``."""
    client = smtplib.SMTP(local_hostname=mail.sender.rpartition("@")[2])
    try:
        connection = wire.connect(mail.host, mail.port)
        client.sock = wire.secure(connection, mail.host) if mail.tls == "implicit" else connection
        _expect(client.getreply(), _READY)
        client.ehlo_or_helo_if_needed()
        if mail.tls == "starttls":
            _start_tls(client, mail.host, wire)
        if mail.username is not None and password is not None:
            client.login(mail.username, password)
        refused = client.send_message(message, mail.sender, mail.to)
    except smtplib.SMTPRecipientsRefused as error:
        codes = [code for code, _ in error.recipients.values()]
        raise NotSent(f"the receiver refused every recipient: {codes}", final=min(codes) >= _PERMANENT) from error
    except smtplib.SMTPResponseException as error:
        final = error.smtp_code >= _PERMANENT and error.smtp_code not in _LOGIN
        raise NotSent(f"the receiver answered with code {error.smtp_code}", final=final) from error
    except (OSError, smtplib.SMTPException) as error:
        raise NotSent(plain(str(error) or type(error).__name__, 300)) from error
    finally:
        client.close()
    if refused:  # the others have it, so another attempt would send it twice
        raise NotSent(f"the receiver refused {len(refused)} of {len(mail.to)} recipients", final=True)


def _start_tls(client: smtplib.SMTP, host: str, wire: Wire) -> None:
    """As ``SMTP.starttls``, which would verify the certificate for the address that it connected to itself."""
    if client.sock is None or not client.has_extn("starttls"):
        raise NotSent("the receiver does not offer STARTTLS")
    _expect(client.docmd("STARTTLS"), _READY)
    client.sock = wire.secure(client.sock, host)
    # What was said before TLS does not count, and what is in the buffer was not said under TLS.
    client.file, client.helo_resp, client.ehlo_resp, client.esmtp_features = None, None, None, {}
    client.does_esmtp = False
    client.ehlo_or_helo_if_needed()


def _expect(reply: tuple[int, bytes], code: int) -> None:
    if reply[0] != code:
        raise smtplib.SMTPResponseException(*reply)
