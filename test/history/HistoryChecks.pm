# What the history checker compares at the end of a round, and what it reports
# about an event that is lost or came when it must not.

package HistoryChecks;

use strict;
use warnings;

use Exporter 'import';
use PostgreSQL::Test::Utils;

our @EXPORT = qw(load_file load_messages differences seek_differences lifetime_differences saga_differences history_of);

# load_arrivals(SERVER, SUBSCRIPTION, LINES): each "tag|event_id|topic|key|n",
# in the order of arrival
sub load_arrivals
{
	my ($node, $subscription, @lines) = @_;

	return unless @lines;
	my $copy = join '', map { s/\|/\t/gr . "\n" } @lines;
	$node->safe_psql('postgres', "CREATE TABLE loaded (tag uuid, event_id uuid, topic text, key text, n text, seq serial);
COPY loaded (tag, event_id, topic, key, n) FROM STDIN;\n$copy\\.
INSERT INTO arrived (subscription, tag, event_id, topic, key, n, xid)
SELECT '$subscription', tag, event_id, topic, nullif(key, ''), nullif(n, '')::bigint, NULL FROM loaded ORDER BY seq;
DROP TABLE loaded");
}

# load_file(SERVER, SUBSCRIPTION, FILE): of the batches in it, those that are
# in the database
sub load_file
{
	my ($node, $subscription, $file) = @_;
	my %events;

	return unless -e $file;
	for (split /\n/, slurp_file($file))
	{
		my ($id, $event) = split /\|/, $_, 2;
		push @{ $events{$id} }, $event;
	}
	load_arrivals($node, $subscription,
		map { @{ $events{$_} // [] } } split /\n/, $node->safe_psql('postgres', 'SELECT id FROM batch ORDER BY seq'));
}

# load_messages(SERVER, SUBSCRIPTION, MESSAGES): what a broker got, each at its
# first time: this is at least once
sub load_messages
{
	my ($node, $subscription, @bodies) = @_;
	my %seen;
	my @tags = grep { !$seen{$_}++ } map { /"tag": ?"([0-9a-f-]{36})"/ ? $1 : die "not ours: $_" } @bodies;

	return unless @tags;
	$node->safe_psql('postgres', "INSERT INTO arrived (subscription, tag, event_id, topic, key, n, xid)
SELECT '$subscription', a.tag, t.event_id, t.topic, t.key, t.n, NULL
FROM unnest('{" . join(',', @tags) . "}'::uuid[]) WITH ORDINALITY a (tag, i) LEFT JOIN truth t USING (tag) ORDER BY i");
	return scalar(@bodies) - scalar(@tags);
}

# differences(SERVER, SUBSCRIPTION, TOPICS, DEAD): what must not be, by what
# is wrong. DEAD: what is among the dead letters has not arrived, and need not.
sub differences
{
	my ($node, $subscription, $topics, $dead) = @_;
	my $arrived = "(SELECT * FROM arrived WHERE subscription = '$subscription') a";
	my $truth = "(SELECT * FROM truth WHERE topic = ANY('{$topics}')) t";
	my $given_up = $dead ? "SELECT (payload->>'tag')::uuid FROM cqrs_dead_letters WHERE subscription = '$subscription'" : 'SELECT NULL::uuid WHERE false';
	my $ordered = $subscription =~ /^(?:poisoned|puller|sharers|leased)$/ ? 'NOT is_poison(tag)' : 'true';

	return find($node, $subscription,
		lost => "SELECT tag FROM $truth EXCEPT SELECT tag FROM $arrived EXCEPT ($given_up)",
		invented => "(SELECT tag FROM $arrived UNION $given_up) EXCEPT SELECT tag FROM $truth",
		twice => "SELECT tag FROM (SELECT tag FROM $arrived UNION ALL $given_up) s GROUP BY tag HAVING count(*) > 1",
		changed => "SELECT tag FROM $arrived JOIN $truth USING (tag)
			WHERE (a.topic, a.key, a.n) IS DISTINCT FROM (t.topic, t.key, t.n) OR a.event_id <> t.event_id",
		disorder => "SELECT tag FROM (SELECT tag, n, lag(n) OVER (PARTITION BY topic, key ORDER BY seq) AS before
				FROM $arrived WHERE key IS NOT NULL AND $ordered) s
			WHERE n <= before");
}

# find(SERVER, SUBSCRIPTION, QUERIES): what each finds, if anything
sub find
{
	my ($node, $subscription, %queries) = @_;
	my @found;

	my @parts = map { "SELECT '$_', count(*), string_agg(tag::text, ' ') FROM ($queries{$_}) q HAVING count(*) > 0" } sort keys %queries;

	for (split /\n/, $node->safe_psql('postgres', join "\nUNION ALL\n", @parts))
	{
		my ($what, $count, $list) = split /\|/;

		push @found, { what => $what, subscription => $subscription, count => $count,
			tags => [ (split / /, $list)[0 .. ($count > 3 ? 2 : $count - 1)] ] };
	}
	return @found;
}

# seek_differences(SERVER, SUBSCRIPTION): in each epoch, the numbers of a key
# come in order, and none is missing from its target to the last that arrived;
# it begins early enough for its target; and the last one, which goes on until
# all is delivered, has everything from its target on. What was emitted before
# a target that is a time comes for the sake of others of its transaction, or of
# later transactions, so not all of it.
sub seek_differences
{
	my ($node, $subscription) = @_;
	my $arrived = "(SELECT a.*, e.target, (SELECT max(epoch) FROM epoch WHERE subscription = '$subscription') AS last
		FROM arrived a JOIN epoch e USING (subscription, epoch) WHERE subscription = '$subscription') a";
	my $truth = "(SELECT t.*, coalesce(v.emitted_at, t.at) AS emitted_at
		FROM truth t LEFT JOIN cqrs_topics.replayed v USING (event_id) WHERE t.topic = 'replayed') t";
	my $since = q(CASE WHEN target LIKE '2%' THEN target::timestamptz WHEN target = 'earliest' THEN '-infinity' ELSE 'infinity' END);

	return find($node, $subscription,
		invented => "SELECT tag FROM $arrived EXCEPT SELECT tag FROM $truth",
		twice => "SELECT tag FROM $arrived GROUP BY tag, epoch HAVING count(*) > 1",
		disorder => "SELECT tag FROM (SELECT tag, n, lag(n) OVER (PARTITION BY epoch, topic, key ORDER BY seq) AS before
				FROM $arrived WHERE key IS NOT NULL) s
			WHERE n <= before",
		skipped => "SELECT t.tag FROM (SELECT epoch, key, target, min(n) AS first, max(n) AS last FROM $arrived WHERE key IS NOT NULL GROUP BY 1, 2, 3) s
			JOIN $truth USING (key) WHERE t.n BETWEEN s.first AND s.last AND (target = 'latest' OR t.emitted_at >= $since)
				AND NOT EXISTS (SELECT FROM arrived a WHERE a.subscription = '$subscription' AND a.epoch = s.epoch AND a.tag = t.tag)",
		'begun too late' => "SELECT t.tag FROM (SELECT epoch, key, target, min(n) AS first FROM $arrived WHERE key IS NOT NULL GROUP BY 1, 2, 3) s
			JOIN $truth USING (key) WHERE t.n < s.first AND t.emitted_at >= $since",
		lost => "SELECT t.tag FROM $truth, (SELECT epoch, target FROM epoch WHERE subscription = '$subscription' ORDER BY epoch DESC LIMIT 1) e
			WHERE t.emitted_at >= $since AND NOT EXISTS (SELECT FROM arrived a WHERE subscription = '$subscription' AND a.epoch = e.epoch AND a.tag = t.tag)");
}

# lifetime_differences(SERVER): of subscriptions that came and went
sub lifetime_differences
{
	my ($node) = @_;
	my $arrived = "(SELECT * FROM arrived WHERE subscription LIKE 'passing%' AND tag IS NOT NULL)";
	my $first = "(SELECT subscription, key, min(n) AS first, max(n) AS last FROM $arrived a WHERE key IS NOT NULL GROUP BY 1, 2)";

	return find($node, 'passing',
		invented => "SELECT tag FROM $arrived a EXCEPT SELECT tag FROM truth",
		twice => "SELECT tag FROM $arrived a GROUP BY tag, subscription HAVING count(*) > 1",
		skipped => "SELECT tag FROM (SELECT tag, n, lag(n) OVER (PARTITION BY subscription, key ORDER BY seq) AS before
				FROM $arrived a WHERE key IS NOT NULL) s
			WHERE n <> before + 1",
		'begun too late' => "SELECT t.tag FROM $first f JOIN lifetime l USING (subscription, key) JOIN truth t USING (topic, key)
			WHERE NOT l.ended AND t.n > l.n AND t.n < f.first",
		lost => "SELECT t.tag FROM lifetime l JOIN lifetime b USING (subscription, topic, key) JOIN truth t USING (topic, key)
			WHERE l.ended AND NOT b.ended AND t.n > b.n AND t.n <= l.n
				AND NOT EXISTS (SELECT FROM arrived a WHERE a.subscription = l.subscription AND a.tag = t.tag)");
}

# saga_differences(SERVER): each saga that was started is over, and no other; of one that
# was completed, each step was done once, and none undone; of another one, what was done
# was undone, in reverse.
sub saga_differences
{
	my ($node) = @_;
	my $status = '(SELECT * FROM cqrs_saga_status)';
	my $did = "(SELECT saga, what, count(*) FILTER (WHERE NOT undoes) AS done, count(*) FILTER (WHERE undoes) AS undone FROM saga_did GROUP BY 1, 2)";
	my $steps = q((VALUES ('trip', 'first'), ('trip', 'second'), ('trip', 'third'), ('nap', 'first'), ('nap', 'second'), ('signalled', 'first'), ('signalled', 'second'),
		('bought', 'first'), ('bought', 'second'), ('both', 'first'), ('both', 'one'), ('both', 'two'), ('both', 'third'), ('outer', 'first'), ('outer', 'third')));

	return find($node, 'sagas',
		lost => "SELECT saga AS tag FROM saga_truth EXCEPT SELECT saga_id FROM $status s",
		invented => "(SELECT saga_id AS tag FROM $status s WHERE parent_id IS NULL UNION SELECT saga FROM saga_did WHERE saga NOT IN (SELECT saga_id FROM $status c WHERE parent_id IS NOT NULL))
			EXCEPT SELECT saga FROM saga_truth",
		'not over' => "SELECT saga_id AS tag FROM $status s WHERE status NOT IN ('completed', 'compensated', 'cancelled')",
		'not done once' => "SELECT saga_id AS tag FROM $status s JOIN $steps e (name, what) ON e.name = s.saga_name LEFT JOIN $did d ON d.saga = s.saga_id AND d.what = e.what
			WHERE status = 'completed' AND (d.done IS DISTINCT FROM 1 OR d.undone <> 0)",
		'not undone once' => "SELECT saga_id AS tag FROM $status s JOIN $did d ON d.saga = s.saga_id WHERE status <> 'completed' AND (d.done <> 1 OR d.undone <> 1)",
		'not undone in reverse' => "SELECT saga AS tag FROM (SELECT saga, string_agg(what, ' ' ORDER BY seq) FILTER (WHERE NOT undoes) AS done,
				string_agg(what, ' ' ORDER BY seq DESC) FILTER (WHERE undoes) AS undone FROM saga_did WHERE NOT branch GROUP BY 1) s
			WHERE undone IS NOT NULL AND done <> undone",
		'done while it is undone' => "SELECT saga AS tag FROM saga_did GROUP BY 1 HAVING max(seq) FILTER (WHERE NOT undoes) > min(seq) FILTER (WHERE undoes)");
}

# history_of(SERVER, DIFFERENCE, FILE): who emitted the event and when, where
# it came, its neighbours, the cursor, and what happened at the time
sub history_of
{
	my ($node, $difference, $file) = @_;
	my $subscription = $difference->{subscription};
	my $text = '';

	for my $tag (@{ $difference->{tags} })
	{
		my %queries = (
			'emitted' => "SELECT * FROM truth WHERE tag = '$tag'",
			'in the topic' => "SELECT position, status, emitted_at, event_id, topic FROM cqrs_events(status => 'all', max_events => 1000000) WHERE payload->>'tag' = '$tag'",
			'arrived' => "SELECT * FROM arrived WHERE tag = '$tag' ORDER BY seq",
			'neighbours' => "SELECT a.* FROM arrived a JOIN truth t ON t.tag = '$tag' AND a.topic = t.topic AND a.key IS NOT DISTINCT FROM t.key
				AND a.at BETWEEN t.at - interval '1 s' AND t.at + interval '3 s' WHERE a.subscription LIKE '$subscription%' ORDER BY a.seq LIMIT 20",
			'cursors' => "SELECT s.subscription, c.* FROM cqrs.cursor c JOIN cqrs.subscription s USING (subscription_id) WHERE subscription LIKE '$subscription%'",
			'parked' => "SELECT r.* FROM cqrs.retry r JOIN cqrs.subscription s USING (subscription_id) WHERE subscription LIKE '$subscription%' LIMIT 10",
			'ticks' => 'SELECT * FROM cqrs.tick ORDER BY tick_id DESC LIMIT 3',
			'epochs' => "SELECT * FROM epoch WHERE subscription = '$subscription' ORDER BY epoch",
			'saga' => "SELECT * FROM cqrs_saga_status WHERE saga_id = '$tag'",
			'its history' => "SELECT * FROM cqrs_saga_history('$tag')",
			'what it did' => "SELECT * FROM saga_did WHERE saga = '$tag' ORDER BY seq");

		$text .= "$difference->{what} ($difference->{count}), $subscription: $tag\n";
		for my $what ('emitted', 'in the topic', 'arrived', 'neighbours', 'cursors', 'parked', 'ticks', 'epochs', 'saga', 'its history', 'what it did')
		{
			my ($rc, $out, $err) = $node->psql('postgres', $queries{$what});

			$out =~ s/^/\t/mg;
			$text .= "  $what:\n$out\n" if $out =~ /\S/;
			$text .= "  $what: $err\n" if $err;
		}
		my ($time) = $node->safe_psql('postgres', "SELECT to_char(at AT TIME ZONE 'UTC', 'HH24:MI:SS') FROM truth WHERE tag = '$tag'");
		$text .= "  what happened then:\n" . join '', map { "\t$_\n" } around($time, $file);
	}
	return $text;
}

# around(TIME, FILE): lines of a second before to five seconds after
sub around
{
	my ($time, $file) = @_;
	my $seconds = sub { my ($h, $m, $s) = $_[0] =~ /^(\d+):(\d+):(\d+)/; return $h * 3600 + $m * 60 + $s; };

	return () unless $time;
	return grep { /^\d+:/ && abs($seconds->($_) - $seconds->($time) - 2) <= 3 } split /\n/, slurp_file($file);
}

1;
