"""What actors talk to: storage, mailer, exporter, images, cleaner; each with its settings class beside it.

An actor imports the module and calls a function of it:

    from services import mailer
    mailer.send(["ada@example.org"], "welcome", {"name": "Ada"}, message_id=current_job().id)

The function hands over to the module's `default`, an instance that is built from `CALLBOARD_*` settings
at the first call, never at import. A test puts its own in its place (`services/default.py`):

    with mailer.default.replaced_by(Mailer(...)):
        ...
"""
