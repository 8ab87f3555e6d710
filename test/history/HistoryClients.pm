# What the clients of the history checker do: see setup.sql for the functions
# that they call.

package HistoryClients;

use strict;
use warnings;

use Exporter 'import';
use Time::HiRes qw(usleep time);

our @EXPORT = qw(%EMITTERS %CONSUMERS say_history);

my @TOPICS = qw(orders orders orders payments payments replayed);

sub pick { return $_[ rand @_ ]; }
sub chance { return rand() < $_[0]; }
sub a_key { return sprintf "'k%d'", 1 + rand 6; }
sub pause { usleep(1000 * rand $_[0]); }

# say_history(FILE, TEXT): a line of what is done
sub say_history
{
	my ($file, $text) = @_;
	my $now = time;

	open my $out, '>>', $file or die "$file: $!";
	syswrite $out, sprintf "%s.%03d %s\n", scalar(POSIX::strftime('%H:%M:%S', gmtime $now)), ($now - int $now) * 1000, $text;
	close $out;
}

# ------------------------------------------------------------------------
# Emitters
# ------------------------------------------------------------------------

# step(DEPTH): a statement, or a savepoint with some
sub step
{
	my ($depth) = @_;
	my $topic = pick(@TOPICS);
	my $dice = rand;

	if ($dice < 0.12 && $depth < 3)
	{
		my @steps = map { step($depth + 1) } 0 .. rand 3;
		return ("SAVEPOINT s$depth", @steps, (chance(0.5) ? 'ROLLBACK TO' : 'RELEASE') . " s$depth");
	}
	return "SELECT emit('$topic', NULL)" if $dice < 0.25;
	return sprintf "SELECT emit_many(%d, %s, %s)", 1 + rand 30, a_key(), a_key() if $dice < 0.31;
	return sprintf "SELECT emit_nested(%d, '$topic', %s)", 1 + rand 4, a_key() if $dice < 0.38;
	return "SELECT enqueue(" . a_key() . ")" if $dice < 0.46;
	return sprintf "SELECT enqueue(NULL, '%d ms')", rand 500 if $dice < 0.5;
	return sprintf q(SELECT cqrs_send('Place', jsonb_build_object('topic', '%s', 'key', %s))), $topic, a_key() if $dice < 0.57;
	return sprintf 'SELECT pg_sleep(%.3f)', rand 0.05 if $dice < 0.6;
	return "SELECT emit('$topic', " . a_key() . ')';
}

sub emit
{
	my ($session) = @_;
	my @steps = map { step(0) } 0 .. rand 4;
	my $begin = chance(0.1) ? 'BEGIN ISOLATION LEVEL REPEATABLE READ' : 'BEGIN';
	my $end = rand;

	$session->query('SET synchronous_commit = ' . pick(qw(on off))) if chance(0.1);
	if ($end < 0.05)
	{
		$session->query(join ";\n", $begin, @steps);
		die "leave\n";
	}
	$session->query(join ";\n", $begin, @steps,
		$end < 0.1 ? ('SELECT 1/0', 'COMMIT') : $end < 0.2 ? 'ROLLBACK' : 'COMMIT');
	pause(30);
}

# Its transactions stay open, while the others' commit.
sub emit_late
{
	my ($session, $key) = @_;

	$session->query("BEGIN; SELECT emit('orders', '$key'); SELECT emit('replayed', NULL)");
	pause(3000);
	$session->query("SELECT emit('payments', '$key'); SELECT emit('orders', '$key');" . (chance(0.8) ? 'COMMIT' : 'ROLLBACK'));
	pause(100);
}

my $prepared = 0;

sub emit_prepared
{
	my ($session) = @_;
	my $name = sprintf 'p %d %d', $$, $prepared++;

	$session->query(join ";\n", 'BEGIN', "SELECT emit_free('orders')", 'SAVEPOINT s', "SELECT emit_free('payments')",
		(chance(0.5) ? 'ROLLBACK TO s' : ()), "SELECT emit('replayed', NULL)", 'SELECT enqueue(NULL, \'0\')',
		"PREPARE TRANSACTION '$name'");
	pause(200);

	# Also those that others left.
	for my $gid (split /\n/, $session->query('SELECT gid FROM pg_prepared_xacts'))
	{
		$session->query((chance(0.7) ? 'COMMIT' : 'ROLLBACK') . " PREPARED '$gid'") if chance(0.5);
		pause(100);
	}
}

our %EMITTERS = (
	(map { ("emitter$_" => \&emit) } 1 .. 3),
	(map { my $key = "late$_"; ($key => sub { emit_late($_[0], $key) }) } 1 .. 2),
	preparer => \&emit_prepared);

# ------------------------------------------------------------------------
# Consumers
# ------------------------------------------------------------------------

# All, a part, nothing in the end, or the client vanishes.
sub pull
{
	my ($session, $subscription) = @_;
	my $end = rand;
	my $size = pick(1, 5, 50, 100);

	if ($end < 0.6)
	{
		$session->query("SELECT pull('$subscription', $size, $size)");
	}
	elsif ($end < 0.8)
	{
		$session->query(sprintf "BEGIN; SELECT pull('$subscription', $size, %d); COMMIT", 1 + rand $size);
	}
	else
	{
		$session->query("BEGIN; SELECT pull('$subscription', $size, $size)");
		die "leave\n" if $end < 0.85;
		$session->query('ROLLBACK');
	}
	pause(40);
}

# With a file: what was received is written into it at once, and counts if the
# batch is in the database in the end.
my $batches = 0;

sub write_batch
{
	my ($file, $id, @events) = @_;

	open my $out, '>>', $file or die "$file: $!";
	syswrite $out, join '', map { "$id|$_\n" } @events;
	close $out;
}

# receive(SESSION, SUBSCRIPTION, OPTIONS): rows of position, event
sub receive
{
	my ($session, $subscription, $options, @columns) = @_;
	my $output = $session->query(sprintf q(SELECT concat_ws('|', %s, payload->>'tag', event_id, topic, coalesce(key, ''), coalesce(payload->>'n', ''))
		FROM cqrs_receive('%s', %s) WITH ORDINALITY ORDER BY ordinality), join(', ', 'position', @columns), $subscription, $options);

	return map { [ split /\|/, $_, @columns + 2 ] } grep { /^\d+\|/ } split /\n/, $output;
}

sub pull_to_file
{
	my ($session, $file) = @_;
	my $id = join '-', $$, time, $batches++;

	$session->query('BEGIN');
	my @rows = receive($session, 'filed', pick(1, 3, 100));
	if (!@rows)
	{
		$session->query('COMMIT');
		return pause(50);
	}
	splice @rows, 1 + rand @rows if chance(0.3);
	write_batch($file, $id, map { $_->[1] } @rows);
	my $positions = join ',', map { $_->[0] } @rows;
	$session->query("SELECT acknowledge('filed', '{$positions}')");
	$session->query("INSERT INTO batch (id) VALUES ('$id')");
	die "leave\n" if chance(0.03);
	$session->query(chance(0.9) ? 'COMMIT' : 'ROLLBACK');
	pause(20);
}

# Received in one transaction, acknowledged in another, perhaps too late.
sub pull_leased
{
	my ($session, $file) = @_;
	my $id = join '-', $$, time, $batches++;
	my $lease = pick(50, 1000, 2000, 2000);
	my @rows = receive($session, 'leased', sprintf("%d, lease => '$lease ms'", pick(1, 30, 100)), 'receipt');
	my (@done, @refused);

	return pause(50) unless @rows;
	die "leave\n" if chance(0.03);
	pause(80);
	for my $row (@rows)
	{
		# What is left comes again.
		last if chance(0.01);
		if (chance(0.005)) { push @refused, $row; last; }
		push @done, $row;
	}
	@done = reverse @done if chance(0.1);
	write_batch($file, $id, map { $_->[2] } sort { $a->[0] <=> $b->[0] } @done);
	my @statements;
	my $receipt = $rows[0][1];
	push @statements, "SELECT cqrs_renew('leased', '$receipt', '1 s')" if chance(0.1);
	push @statements, sprintf "SELECT cqrs_nack('leased', '{%d}', 'not now', retry_after => '20 ms', receipt => '$receipt')", $_->[0] for @refused;
	push @statements, sprintf "SELECT cqrs_ack('leased', '{%s}', '$receipt')", join ',', map { $_->[0] } @done if @done;
	push @statements, "INSERT INTO batch (id) VALUES ('$id')";
	$session->query(join ";\n", 'BEGIN', @statements, chance(0.95) ? 'COMMIT' : 'ROLLBACK');
	pause(20);
}

sub drain
{
	my ($session) = @_;

	$session->query(chance(0.8) ? "SELECT cqrs_drain('drained')" : "BEGIN; SELECT cqrs_drain('drained'); ROLLBACK");
	pause(300);
}

our %CONSUMERS = (
	(map { my $subscription = $_; ($_ => sub { pull($_[0], $subscription) }) } qw(puller replay_puller)),
	(map { ("sharer$_" => sub { pull($_[0], 'sharers') }) } 1 .. 2),
	(map { ("filer$_" => \&pull_to_file) } 1 .. 2),
	drainer => \&drain);

1;
