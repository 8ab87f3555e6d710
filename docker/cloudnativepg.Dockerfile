# What CloudNativePG mounts beside a server of PostgreSQL 18: /share/extension and
# /lib, and nothing else.
#
#   docker build -f docker/cloudnativepg.Dockerfile -t cqrs-outbox:0.9.0-18-trixie .

ARG PG_MAJOR=18
ARG DEBIAN=trixie

FROM postgres:$PG_MAJOR-$DEBIAN AS build
ARG PG_MAJOR
RUN apt-get update && \
    apt-get install -y --no-install-recommends make gcc libc6-dev uuid-dev postgresql-server-dev-$PG_MAJOR
COPY . /sources
RUN make -C /sources clean && \
    make -C /sources install PG_CONFIG=/usr/lib/postgresql/$PG_MAJOR/bin/pg_config \
        BROKERS= prefix=/installed

FROM scratch
COPY --from=build /installed/ /
USER 65532:65532
