# An application with SQLAlchemy: runs the example in the file that is named, and
# then shows the events that it finds.

import os
import sys
import uuid
from datetime import datetime

from sqlalchemy import DateTime, create_engine, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class Base(DeclarativeBase):
    pass


class Invoice(Base):
    __tablename__ = "invoice"
    id: Mapped[int] = mapped_column(primary_key=True)
    total: Mapped[int]


engine = create_engine(os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:", 1))
Base.metadata.create_all(engine)
with Session(engine) as session:
    with open(sys.argv[1]) as example:
        exec(compile(example.read(), sys.argv[1], "exec"))

    session.add(Invoice(id=18, total=1))
    session.add(MeetingEvent(event_name="invoice_sent", key="18", payload=None, headers={"tenant": "a"},
                             occurred_at=datetime.fromisoformat("2024-12-31T23:59:59+00:00")))
    session.rollback()
    with session.begin():
        session.add_all(MeetingEvent(event_name="invoice_sent", key=str(n), headers={"tenant": "a"},
                                     occurred_at=datetime.fromisoformat("2024-12-31T23:59:59+00:00"))
                        for n in (19, 20))
    for event in session.scalars(select(MeetingEvent).order_by(MeetingEvent.key)):
        print(event.event_name, event.key, event.payload, event.headers, event.occurred_at, isinstance(event.event_id, uuid.UUID),
              sep=" | ")
