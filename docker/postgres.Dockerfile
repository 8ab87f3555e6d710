# The official image of PostgreSQL, with cqrs_outbox and the modules for RabbitMQ
# and Kafka:
#
#   docker build -f docker/postgres.Dockerfile -t postgres-cqrs-outbox:17 .

ARG PG_MAJOR=17
ARG DEBIAN=trixie

FROM postgres:$PG_MAJOR-$DEBIAN AS build
ARG PG_MAJOR
RUN apt-get update && \
    apt-get install -y --no-install-recommends make gcc libc6-dev pkg-config uuid-dev \
        librabbitmq-dev librdkafka-dev libssl-dev postgresql-server-dev-$PG_MAJOR
COPY . /sources
RUN make -C /sources clean && \
    make -C /sources install PG_CONFIG=/usr/lib/postgresql/$PG_MAJOR/bin/pg_config \
        BROKERS="kafka rabbitmq" DESTDIR=/installed

FROM postgres:$PG_MAJOR-$DEBIAN
RUN apt-get update && \
    apt-get install -y --no-install-recommends libuuid1 librabbitmq4 librdkafka1 && \
    rm -rf /var/lib/apt/lists/*
COPY --from=build /installed/ /
CMD ["postgres", "-c", "shared_preload_libraries=cqrs_outbox"]
