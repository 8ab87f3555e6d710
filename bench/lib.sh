# Shared by the benchmarks. To be sourced with bash; $top is the checkout.

. "$top/test/lib.sh"

# start_bench [PACKAGE...]: what is missing; the extension, built and
# installed; a cluster with it and functions.sql
start_bench()
{
	install_missing "$@"
	make_scratch
	copy_server
	build_and_install
	start_cluster bench "$top/bench/bench.conf"
	query -c "CREATE EXTENSION cqrs_outbox" -f "$top/bench/functions.sql" >/dev/null
}

# query ARGUMENTS...: of psql
query()
{
	as_user "$bindir/psql" -XAtq -v ON_ERROR_STOP=1 "$@" 2>"$scratch/query.$BASHPID.err" ||
		{ cat "$scratch/query.$BASHPID.err" >&2; exit 1; }
}

# setting NAME VALUE: of the cluster; waits until it is in force
setting()
{
	local before

	before=$(query -c "SELECT pg_conf_load_time()" -c "ALTER SYSTEM SET $1 = '$2'") || exit 1
	query -c "SELECT pg_reload_conf()" >/dev/null || exit 1
	until [ "$(query -c "SELECT pg_conf_load_time() > '$before'")" = t ]; do :; done
}

# wait_until CONDITION: of SQL
wait_until()
{
	query -c "CALL wait_until(\$\$$1\$\$)"
}

# background NAME SQL: in a session that ends with end_background, if not before
background()
{
	PGAPPNAME=background as_user "$bindir/psql" -XAtq -c "$2" >"$scratch/$1.log" 2>&1 &
}

end_background()
{
	query -c "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'background'" >/dev/null
}

# start_kafka BROKERS: at $address
start_kafka()
{
	local brokers=$scratch/brokers_$1

	mkdir "$brokers"
	cp "$top"/test/t/{CqrsTest,Kafka,RealKafka}.pm "$top/bench/kafka_brokers.pl" "$brokers"
	own "$brokers"
	coproc KAFKA { as_user env --chdir="$brokers" PERL5LIB="$pgxs/src/test/perl:$brokers" \
		PG_REGRESS="$pgxs/src/test/regress/pg_regress" PG_TEST_PORT_DIR="$brokers" \
		TESTDIR="$brokers" TESTDATADIR="$brokers/tmp_check" TESTLOGDIR="$brokers/tmp_check/log" \
		perl kafka_brokers.pl "$1"; }
	kafka_pid=$!
	read -r address <&"${KAFKA[0]}" || die "could not start Kafka"
}

stop_kafka()
{
	eval "exec ${KAFKA[1]}>&-"
	wait "$kafka_pid"
}

# new_topic NAME PARTITIONS [SETTING=VALUE...]: of Kafka, empty
new_topic()
{
	tell_kafka "$*"
	query -c CHECKPOINT
}

# tell_kafka WHAT: see kafka_brokers.pl
tell_kafka()
{
	local answer

	echo "$1" >&"${KAFKA[1]}"
	read -r answer <&"${KAFKA[0]}" && [ "$answer" = ok ] || die "Kafka does not do this: $1"
}

# build_program NAME LIBRARY...: bench/NAME.c as $scratch/NAME
build_program()
{
	local name=$1
	shift

	gcc -O2 -Wall -o "$scratch/$name" "$top/bench/$name.c" $(pkg-config --cflags --libs "$@") || die "could not build $name"
}

# start_pgqd: PgQ's ticker
start_pgqd()
{
	cat >"$scratch/pgqd.ini" <<-INI
		[pgqd]
		logfile = $scratch/pgqd.log
		pidfile = $scratch/pgqd.pid
		base_connstr = host=$PGHOST port=$PGPORT user=$PGUSER
		initial_database = postgres
		database_list = postgres
		maint_period = 2
		ticker_period = 0.1
	INI
	own "$scratch"
	as_user pgqd -q -d "$scratch/pgqd.ini"
}

stop_pgqd()
{
	as_user pgqd -q -s "$scratch/pgqd.ini" 2>/dev/null
}

# tps FILE SECONDS [OPTION...]: transactions a second, with pgbench's options
tps()
{
	local file=$1 seconds=$2
	shift 2

	as_user "$bindir/pgbench" -n -M prepared -T "$seconds" -f "$file" "$@" 2>"$scratch/pgbench.err" |
		awk '/^tps/ {print $3; found = 1} END {exit !found}' || { cat "$scratch/pgbench.err" >&2; exit 1; }
}

# median: of the numbers on the input
median()
{
	sort -g | awk '{v[NR] = $1} END {printf "%.6g", NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2}'
}

# compute EXPRESSION: awk's
compute()
{
	awk "BEGIN {printf \"%.6g\", $1}"
}

# report TEXT VALUE UNIT [BOUND]
report()
{
	printf '%-58s %10.2f %-7s %s\n' "$1" "$2" "$3" "${4:-}"
}

# draw NAME: a chart, bench/results/NAME.svg, with gnuplot; its commands are on the
# input
draw()
{
	mkdir -p "$top/bench/results"
	{
		echo "set terminal svg noenhanced size 900,640 font 'sans-serif,11' background 'white'; set output '$top/bench/results/$1.svg'"
		echo "set style data lines; set grid ytics lc rgb '#dddddd'; set border 3; set tics nomirror"
		cat
	} | gnuplot || die "could not draw $1"
	echo "bench/results/$1.svg"
}
