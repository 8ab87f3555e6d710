# cqrs_outbox: a CQRS mediator and a transactional outbox for PostgreSQL.
#
#   make, make install    build and install, for the server of $(PG_CONFIG);
#                         also the broker modules whose client library is here
#   make demo             show the main job in a temporary cluster
#   make test             run every test in temporary clusters
#   make bench            measure against what a user would pick instead
#   make indent           format the C source
#   make deb              build Debian packages, in dist/
#   make dist             write the archive for PGXN, in dist/
#   make compile_commands.json
#                         say how each file is compiled

MODULE_big = cqrs_outbox

# The rooms of src/, the lowest first. A file includes what is in its own room or
# in a lower one, which test/checks/run looks after.
ROOMS = include base shared extension registry log mediator broker emit retry \
	subscription inbox delivery pull control deferred saga monitor process

OBJS_base = backoff.o event_id.o guc.o interval.o json.o rate.o rethrow.o rfc3339.o \
	snapshot.o sqlstate.o
OBJS_shared = announce.o bucket.o clock.o database.o delivered.o shmem.o
OBJS_extension = admin.o catalog.o privilege.o row.o version.o
OBJS_registry = handler.o load.o lookup.o owner.o payload.o payload_path.o \
	payload_type.o registry.o signature.o
OBJS_log = cursor.o event.o header.o position.o retention.o rotation.o segment.o \
	segment_index.o tick.o topic.o topic_drop.o window.o window_scan.o
OBJS_mediator = breaker.o command.o context.o dispatch.o dispatch_stack.o \
	domain_event.o dry_run.o event_type.o fallback.o idempotency.o middleware.o stream.o
OBJS_broker = envelope.o link.o link_source.o message.o server.o
OBJS_emit = capture.o emit.o insert.o
OBJS_retry = blame.o failure.o lane.o parked.o retry.o
OBJS_subscription = epoch.o receipt.o search_path.o settings.o subscription.o
OBJS_inbox = consumer.o consumer_check.o dead_message.o inbound.o intake.o intake_batch.o message_id.o message_source.o \
	message_turn.o place.o seek.o
OBJS_delivery = attempt.o broker_entry.o broker_exchange.o broker_sent.o broker_transaction.o broker_trial.o drain.o handler_batch.o handler_call.o handler_timeout.o relay.o session.o \
	target_broker.o target_handler.o tell.o underway.o
OBJS_pull = pull.o pull_ack.o pull_batch.o pull_wait.o
OBJS_control = adopt.o dead_letter.o drop_topic.o events.o operation.o subscribe.o subscribe_check.o topics.o
OBJS_deferred = cancel.o command_options.o command_queue.o command_result.o cron.o cron_schedule.o enqueue.o release.o running.o
OBJS_saga = awaited.o definition.o entry.o keep.o lane.o machine.o message.o receive.o \
	register.o router.o run.o saga_dry_run.o saga_queue.o saga_wait.o signal.o start.o steer.o
OBJS_monitor = breaker_status.o diagram.o health.o subscription_status.o \
	topic_status.o worker_status.o
OBJS_process = assign.o broker_job.o consumer_job.o epoch_close.o handler_job.o job.o launcher.o \
	maintain.o manager.o notify.o process.o schedule.o topic_poll.o \
	utility.o worker.o

# For tests of races, after make clean; see src/base/debug_point.h.
ifdef DEBUG_POINTS
OBJS_base += debug_point.o
endif

OBJS = $(foreach room,$(ROOMS),$(OBJS_$(room):%=src/$(room)/%)) src/module.o

EXTENSION = cqrs_outbox
EXTVERSION := $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" $(dir $(firstword $(MAKEFILE_LIST)))cqrs_outbox.control)
DISTVERSION := $(shell sed -n 's/^   "version": "\(.*\)",/\1/p' $(dir $(firstword $(MAKEFILE_LIST)))META.json)
DATA_built = sql/cqrs_outbox--$(EXTVERSION).sql
DATA = $(patsubst $(srcdir)/%,%,$(wildcard $(srcdir)/sql/update/*.sql))
HEADERS_cqrs_outbox = src/include/cqrs_broker.h src/include/cqrs_hooks.h

REGRESS = meeting registered command expanded query chain stream fallback breaker middleware idempotency dry_run emit envelope insert domain_event context nesting prepared capture subscription payload_handler several own_subscription search_path retry deferred answers schedule saga consumed pull partitions ordering kept retention diagram health privileges owners grants matrix trust lookup adopt extension

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

# "make install prefix=FOLDER" makes FOLDER/share/extension and FOLDER/lib, for
# extension_control_path and dynamic_library_path, and nothing else. By itself,
# PGXS would do so only for servers that were configured with nothing but a prefix.
ifneq ($(prefix),)
override datadir := $(prefix)/share
override pkglibdir := $(prefix)/lib
override HEADERS_cqrs_outbox :=
override prefix :=
prefixed = prefix= datadir=$(datadir) pkglibdir=$(pkglibdir)
endif

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

$(OBJS): $(wildcard $(srcdir)/src/*/*.h) | rooms

# A build in another folder begins without them.
.PHONY: rooms
rooms:
	@mkdir -p $(ROOMS:%=src/%)

# Each broker module is an extension of its own, with a Makefile of its own.
LIBRARIES_example =
LIBRARIES_kafka = rdkafka
LIBRARIES_rabbitmq = librabbitmq openssl
has_libraries = $(if $(1),$(shell pkg-config --exists $(1) 2>/dev/null && echo yes),yes)
BROKERS := $(strip $(foreach module,example kafka rabbitmq,\
	$(if $(wildcard $(srcdir)/brokers/$(module)/Makefile),\
	$(if $(call has_libraries,$(LIBRARIES_$(module))),$(module)))))
BROKER_TARGETS = $(foreach target,all install uninstall clean,$(BROKERS:%=$(target)-%))

all: $(BROKERS:%=all-%)
install: $(BROKERS:%=install-%)
uninstall: $(BROKERS:%=uninstall-%)
clean: $(BROKERS:%=clean-%)

.PHONY: $(BROKER_TARGETS)
$(BROKER_TARGETS):
	$(MAKE) -C $(srcdir)/brokers/$(word 2,$(subst -, ,$@)) $(word 1,$(subst -, ,$@)) $(prefixed)

# The script, of its parts. They say right behind each object what is granted on
# it, which comes last here: what was granted by default is withdrawn before.
$(DATA_built): $(sort $(wildcard $(srcdir)/sql/install/*.sql))
	mkdir -p $(@D)
	{ grep -hv '^GRANT ' $^ && grep -h '^GRANT ' $^; } >$@.tmp && mv $@.tmp $@

.PHONY: demo test bench indent deb dist compile_commands.json

demo:
	$(srcdir)/demo/run

test:
	$(srcdir)/test/run

bench:
	$(srcdir)/bench/run

deb:
	$(srcdir)/debian/build

# What is committed; .gitattributes says what is left out.
dist:
	mkdir -p dist
	git archive --format=zip --prefix=$(EXTENSION)-$(DISTVERSION)/ --output=dist/$(EXTENSION)-$(DISTVERSION).zip HEAD

# For editors: what make would do to compile each file.
define COMPILE_COMMANDS
push @folders, $$1 if /Entering directory .(.*).$$/;
pop @folders if /Leaving directory/;
push @entries, sprintf '{"directory": "%s", "file": "%s", "command": "%s"}',
	map { s/\n//r =~ s/["\\]/\\$$&/gr } $$folders[-1], $$1, $$_ if / -c -o \S+ (\S+\.c)$$/;
END { print "[\n", join(",\n", @entries), "\n]\n" }
endef
export COMPILE_COMMANDS

compile_commands.json:
	@$(MAKE) -n -B -w all | perl -ne "$$COMPILE_COMMANDS" >$@.tmp && mv $@.tmp $@

# As pgindent does it; typedefs.list names the types that the source uses.
INDENT = pg_bsd_indent -bad -bap -bbb -bc -bl -cli1 -cp33 -cdb -nce -d0 -di12 -nfc1 \
	-i4 -l79 -lp -lpl -nip -npro -sac -tpg -ts4 -U$(srcdir)/typedefs.list -st

indent:
	for file in $(srcdir)/src/*.[ch] $(srcdir)/src/*/*.[ch] $(srcdir)/brokers/*/*.[ch]; do \
		$(INDENT) <$$file >$$file.tmp && sed -i -E 's/^([A-Za-z][^ \t]*)[ \t]+\*$$/\1 */' $$file.tmp && cat $$file.tmp >$$file || \
			{ rm -f $$file.tmp; exit 1; }; \
		rm -f $$file.tmp; \
	done

# For scripts: what a variable holds.
print-%:
	@echo $($*)
