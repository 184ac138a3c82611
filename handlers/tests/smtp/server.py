"""A mail server for tests. Arguments: settings as JSON. It prints its port, then one line of JSON for
each thing that happens: a login, a mail, the end of a connection.

Settings, all optional:
  port       the port to listen on; 0, the default, takes a free one
  cert, key  files in PEM: STARTTLS is offered, or TLS spoken from the start if `implicit` is true
  user, password   who must log in first
  answers    what is answered to whom, by the address (of RCPT TO, or MAIL FROM): {"a@b": "550 no"}.
             The key DATA is for the mail itself. A list is used up one by one, then it is 250
  silent     the command after which nothing is answered any more, "RCPT" or "DATA"
  cut        true: the connection ends after the mail was taken, before it is answered
"""

import asyncio
import email
import email.policy
import json
import ssl
import sys

from aiosmtpd.smtp import SMTP, AuthResult

settings = json.loads(sys.argv[1])
answers = settings.get("answers", {})


def say(what, **facts):
    print(json.dumps({"event": what, **facts}), flush=True)


def answer(key):
    planned = answers.get(key)
    if isinstance(planned, list):
        planned = planned.pop(0) if planned else None
    return planned


class Handler:
    async def handle_EHLO(self, server, session, envelope, hostname, responses):
        session.host_name = hostname
        say("hello", name=hostname, tls=session.ssl is not None or settings.get("implicit", False))
        return responses

    async def handle_MAIL(self, server, session, envelope, address, options):
        refused = answer(address)
        if refused:
            return refused
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_RCPT(self, server, session, envelope, address, options):
        if settings.get("silent") == "RCPT":
            say("silent")
            await asyncio.sleep(3600)
        refused = answer(address)
        if refused:
            say("refused", to=address)
            return refused
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        if settings.get("silent") == "DATA":
            say("silent")
            await asyncio.sleep(3600)
        refused = answer("DATA")
        if refused:
            return refused
        mail = email.message_from_bytes(envelope.original_content, policy=email.policy.default)
        say("mail", sender=envelope.mail_from, to=envelope.rcpt_tos, connection=session.peer[1],
            headers={name.lower(): str(value) for name, value in mail.items()},
            parts=[part(leaf) for leaf in mail.walk() if not leaf.is_multipart()])
        if settings.get("cut"):
            server.transport.abort()
        return f"250 2.0.0 OK queued as TEST{session.peer[1]}"


def part(leaf):
    content = leaf.get_content()
    return {
        "type": leaf.get_content_type(),
        "name": leaf.get_filename(),
        "shown_as": leaf["Content-ID"],
        "content": content if isinstance(content, str) else content.decode("latin-1"),
    }


def authenticate(server, session, envelope, mechanism, login):
    given = (login.login.decode(), login.password.decode())
    right = given == (settings["user"], settings["password"])
    say("login", right=right)
    return AuthResult(success=right, handled=False)


async def main():
    context = None
    if "cert" in settings:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings["cert"], settings["key"])
    implicit = settings.get("implicit", False)
    users = {}
    if "user" in settings:
        over_tls = context is not None and not implicit
        users = dict(authenticator=authenticate, auth_required=True, auth_require_tls=over_tls)

    def make():
        starttls = None if implicit else context
        return SMTP(Handler(), hostname="mail.test", tls_context=starttls, enable_SMTPUTF8=True,
                    require_starttls=starttls is not None, **users)

    loop = asyncio.get_running_loop()
    port = settings.get("port", 0)
    server = await loop.create_server(make, "127.0.0.1", port, ssl=context if implicit else None)
    print(server.sockets[0].getsockname()[1], flush=True)
    # The test ends it by closing its standard input, also when the test itself is killed.
    await loop.run_in_executor(None, sys.stdin.read)


asyncio.run(main())
