/*
 * server.h
 *		For cppcheck: what of the server's headers it must know to read ours.
 *
 * The server's own headers are left out, which would take minutes.
 */
#define PG_VERSION_NUM 170000
#define NULL ((void *) 0)
#define DEBUG1 14
#define LOG 15
#define NOTICE 18
#define WARNING 19
#define ERROR 21
#define FATAL 22
#define PANIC 23

/* What does not come back. */
__attribute__((noreturn)) void abort(void);
#define after_DEBUG1
#define after_DEBUG2
#define after_LOG
#define after_NOTICE
#define after_WARNING
#define after_elevel
#define after_level
#define after_ERROR abort();
#define after_FATAL abort();
#define after_PANIC abort();
#define ereport(level, ...) do { (void) (__VA_ARGS__); after_##level } while (0)
#define elog(level, ...) do { use_arguments(__VA_ARGS__); after_##level } while (0)
#define PG_RE_THROW() abort()
#define Assert(condition) do { if (!(condition)) abort(); } while (0)
#define StaticAssertDecl(condition, message) extern int static_assertion
#define StaticAssertStmt(condition, message) ((void) 0)

#define PG_TRY() if (try_begins())
#define PG_CATCH() else
#define PG_FINALLY() if (1)
#define PG_END_TRY() do { } while (0)
#define PG_FUNCTION_INFO_V1(name) extern Datum name(FunctionCallInfo fcinfo)
#define PG_FUNCTION_ARGS FunctionCallInfo fcinfo
#define PG_MODULE_MAGIC extern int module_magic
#define PGDLLEXPORT
#define pg_attribute_noreturn() __attribute__((noreturn))
#define pg_attribute_printf(f, a)

#define dlist_foreach(it, list) for ((it).cur = first_of(list); (it).cur != NULL; (it).cur = next_of(list, (it).cur))
#define dlist_foreach_modify(it, list) dlist_foreach(it, list)
#define foreach(cell, list) for (cell = first_of(list); cell != NULL; cell = next_of(list, cell))
#define foreach_current_index(cell) index_of(cell)
