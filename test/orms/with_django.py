# An application with Django: runs the example in the file that is named, and then
# shows the events that it finds.

import os
import sys
import uuid
from datetime import datetime

import django
from django.conf import settings
from django.db import models, transaction

settings.configure(
    INSTALLED_APPS=["shop"], USE_TZ=True, DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": os.environ["PGDATABASE"]}})
django.setup()

# As if it stood in the application's models.
__name__ = "shop.models"
with open(sys.argv[1]) as example:
    exec(compile(example.read(), sys.argv[1], "exec"))

try:
    with transaction.atomic():
        MeetingEvent.objects.create(event_name="invoice_sent", key="18")
        raise KeyError
except KeyError:
    pass
MeetingEvent.objects.bulk_create(
    MeetingEvent(event_name="invoice_sent", key=str(n), occurred_at=datetime.fromisoformat("2024-12-31T23:59:59+00:00"))
    for n in (19, 20))
for event in MeetingEvent.objects.order_by("key"):
    print(event.event_name, event.key, event.payload, event.occurred_at, isinstance(event.event_id, uuid.UUID), sep=" | ")
