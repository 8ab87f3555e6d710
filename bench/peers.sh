# Shared by the benchmarks that send one load through several outboxes, one after
# the other. To be sourced behind lib.sh; peers.sql has what is in the database.

declare -A name=([cqrs]=cqrs_outbox [pgq]=PgQ [queue]="SKIP LOCKED")
declare -A colour=([cqrs]=9400d3 [pgq]=009e73 [queue]=56b4e9)

# emitting SYSTEM N: the statement that emits so many events
emitting()
{
	case $1 in
		cqrs) echo "SELECT count(cqrs_emit('bench', stamp())) FROM generate_series(1, $2)" ;;
		pgq) echo "SELECT count(pgq.insert_event('bench', 'bench', stamp()::text)) FROM generate_series(1, $2)" ;;
		*) echo "INSERT INTO $1.event (payload) SELECT stamp() FROM generate_series(1, $2)" ;;
	esac
}

# start_consumer SYSTEM: of what is emitted from now on
start_consumer()
{
	case $1 in
		cqrs) query -c "SELECT cqrs_subscribe('bench', ARRAY['bench'], 'handle(cqrs_event)', start => 'latest')" >/dev/null ;;
		pgq) start_pgqd ;;
	esac
	[ "$1" = cqrs ] || background consumer "CALL consume_$1()"
}

# stop_consumer SYSTEM: and all else that is in the background
stop_consumer()
{
	end_background
	case $1 in
		cqrs) query -c "SELECT cqrs_unsubscribe('bench')" >/dev/null ;;
		pgq) stop_pgqd ;;
	esac
}

# handled N: wait until so many events are in "sink", and no more. Counting them all
# the while would be part of what is measured; so they are counted once the table
# is as large as so many are, of which a page has 157.
handled()
{
	wait_until "pg_relation_size('sink') >= $1 / 160 * 8192 AND (SELECT count(*) >= $1 FROM sink)"
	[ "$(query -c "SELECT count(*) FROM sink")" = "$1" ] || die "more than $1 events were handled"
}

# lines SUFFIX COLUMN SYSTEM...: gnuplot's, one for each of the systems, of a file
# in $scratch
lines()
{
	local suffix=$1 column=$2 system separator=plot
	shift 2

	for system; do
		printf "%s '%s' using 1:%s title '%s' lw 2 lc rgb '#%s'" "$separator" "$scratch/$system.$suffix" "$column" "${name[$system]}" "${colour[$system]}"
		separator=,
	done
	echo
}
