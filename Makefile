# cqrs_outbox: a CQRS mediator and a transactional outbox for PostgreSQL.
#
#   make, make install    build and install, for the server of $(PG_CONFIG);
#                         also the broker modules whose client library is here
#   make demo             show the main job in a temporary cluster
#   make test             run every test in temporary clusters
#   make bench            measure against what a user would pick instead
#   make indent           format the C source

MODULE_big = cqrs_outbox
OBJS = \
	src/adopt.o \
	src/blame.o \
	src/breaker.o \
	src/broker_entry.o \
	src/broker_link.o \
	src/broker_server.o \
	src/capture.o \
	src/catalog.o \
	src/clock.o \
	src/context.o \
	src/cqrs_outbox.o \
	src/cursor.o \
	src/database.o \
	src/deferred.o \
	src/dead_letter.o \
	src/diagram.o \
	src/diagram_sequence.o \
	src/dispatch.o \
	src/domain_event.o \
	src/drain.o \
	src/dry_run.o \
	src/emit.o \
	src/epoch.o \
	src/event_id.o \
	src/events.o \
	src/failure.o \
	src/fallback.o \
	src/guc.o \
	src/handler.o \
	src/handler_timeout.o \
	src/health.o \
	src/idempotency.o \
	src/index.o \
	src/json.o \
	src/lane.o \
	src/launcher.o \
	src/maintain.o \
	src/manager.o \
	src/mediator.o \
	src/message.o \
	src/middleware.o \
	src/notify.o \
	src/operation.o \
	src/owner.o \
	src/parked.o \
	src/payload.o \
	src/payload_path.o \
	src/payload_type.o \
	src/privilege.o \
	src/pull.o \
	src/pull_ack.o \
	src/pull_batch.o \
	src/pull_wait.o \
	src/receipt.o \
	src/registry.o \
	src/relay.o \
	src/release.o \
	src/retention.o \
	src/rethrow.o \
	src/retry.o \
	src/rotation.o \
	src/schedule.o \
	src/segment.o \
	src/session.o \
	src/shmem.o \
	src/signature.o \
	src/status.o \
	src/stream.o \
	src/subscription.o \
	src/target_broker.o \
	src/target_handler.o \
	src/tick.o \
	src/topic.o \
	src/topic_poll.o \
	src/topic_status.o \
	src/underway.o \
	src/utility.o \
	src/version.o \
	src/window.o \
	src/window_scan.o \
	src/worker.o

# For tests of races, after make clean; see src/debug_point.h.
ifdef DEBUG_POINTS
OBJS += src/debug_point.o
endif

EXTENSION = cqrs_outbox
DATA_built = sql/cqrs_outbox--1.0.sql
HEADERS_cqrs_outbox = src/cqrs_broker.h src/cqrs_hooks.h

REGRESS = meeting command query chain stream fallback breaker middleware idempotency dry_run emit domain_event context nesting prepared capture subscription own_subscription retry deferred pull partitions kept retention diagram health privileges owners grants matrix trust lookup adopt extension

ISOLATION = $(sort $(basename $(notdir $(wildcard $(srcdir)/test/isolation/specs/*.spec))))
ISOLATION_OPTS = --inputdir=$(srcdir)/test/isolation
DEBUG_ISOLATION = $(sort $(basename $(notdir $(wildcard $(srcdir)/test/debug/specs/*.spec))))

# The server's own headers are not clean under -Wextra.
PG_CPPFLAGS = -I$(srcdir)/src
PG_CFLAGS = -Wextra -Wno-unused-parameter -Wno-sign-compare \
	-Wno-missing-field-initializers
ifdef DEBUG_POINTS
PG_CPPFLAGS += -DCQRS_DEBUG_POINTS
endif
ifdef WERROR
PG_CFLAGS += -Werror
endif
SHLIB_LINK = -luuid -pthread

# The module is not worth inlining by the JIT compiler.
override with_llvm = no

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)
ifneq ($(PGXS),)
include $(PGXS)
else
# "make demo" and "make test" install what is missing, and come back.
srcdir = .
all install:
	@echo "$(PG_CONFIG) not found: install the server's development package" >&2; exit 1
endif

$(OBJS): $(wildcard $(srcdir)/src/*.h)

# Each broker module is an extension of its own, with a Makefile of its own.
LIBRARIES_example =
LIBRARIES_kafka = rdkafka
LIBRARIES_rabbitmq = librabbitmq openssl
has_libraries = $(if $(1),$(shell pkg-config --exists $(1) 2>/dev/null && echo yes),yes)
BROKERS := $(strip $(foreach module,example kafka rabbitmq,\
	$(if $(wildcard $(srcdir)/brokers/$(module)/Makefile),\
	$(if $(call has_libraries,$(LIBRARIES_$(module))),$(module)))))
BROKER_TARGETS = $(foreach target,all install clean,$(BROKERS:%=$(target)-%))

all: $(BROKERS:%=all-%)
install: $(BROKERS:%=install-%)
clean: $(BROKERS:%=clean-%)

.PHONY: $(BROKER_TARGETS)
$(BROKER_TARGETS):
	$(MAKE) -C $(srcdir)/brokers/$(word 2,$(subst -, ,$@)) $(word 1,$(subst -, ,$@))

# The script, of its parts. They say right behind each object what is granted on
# it, which comes last here: what was granted by default is withdrawn before.
$(DATA_built): $(sort $(wildcard $(srcdir)/sql/install/*.sql))
	mkdir -p $(@D)
	{ grep -hv '^GRANT ' $^ && grep -h '^GRANT ' $^; } >$@.tmp && mv $@.tmp $@

.PHONY: demo test bench indent

demo:
	$(srcdir)/demo/run

test:
	$(srcdir)/test/run

bench:
	$(srcdir)/bench/run

# As pgindent does it; typedefs.list names the types that the source uses.
INDENT = pg_bsd_indent -bad -bap -bbb -bc -bl -cli1 -cp33 -cdb -nce -d0 -di12 -nfc1 \
	-i4 -l79 -lp -lpl -nip -npro -sac -tpg -ts4 -U$(srcdir)/typedefs.list -st

indent:
	for file in $(srcdir)/src/*.[ch] $(srcdir)/brokers/*/*.[ch]; do \
		$(INDENT) <$$file | sed -E 's/^([A-Za-z][^ \t]*)[ \t]+\*$$/\1 */' >$$file.tmp && cat $$file.tmp >$$file; rm -f $$file.tmp; \
	done

# For scripts: what a variable holds.
print-%:
	@echo $($*)
