# Included by the Makefile of each broker module of this repository, after
#
#   MODULE		its name: the extension is cqrs_outbox_$(MODULE)
#   LIBRARY		its client library, as pkg-config knows it; may be empty
#   OBJS		its objects, without those of brokers/common
#
# What is shared is compiled into each module, in the module's own folder.

COMMON := $(dir $(lastword $(MAKEFILE_LIST)))
CORE := $(COMMON)../../src/include

MODULE_big = cqrs_outbox_$(MODULE)
EXTENSION = cqrs_outbox_$(MODULE)
DATA = $(wildcard $(EXTENSION)--*.sql)
OBJS += broker_client.o broker_validator.o

ifneq ($(LIBRARY),)
LIBRARY_CFLAGS := $(shell pkg-config --cflags $(LIBRARY))
SHLIB_LINK += $(shell pkg-config --libs $(LIBRARY))
endif

# The server's own headers are not clean under -Wextra.
PG_CPPFLAGS = -I$(COMMON) -I$(CORE) $(LIBRARY_CFLAGS)
PG_CFLAGS = -Wextra -Wno-unused-parameter -Wno-sign-compare \
	-Wno-missing-field-initializers
ifdef WERROR
PG_CFLAGS += -Werror
endif

override with_llvm = no

vpath broker_%.c $(COMMON)

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

$(OBJS): $(wildcard $(srcdir)/*.h $(COMMON)*.h) $(CORE)/cqrs_broker.h
