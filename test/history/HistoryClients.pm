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

# Only a poll would find what is scheduled so: the command is due at once, also
# if the clock was set back.
sub emit_prepared
{
	my ($session) = @_;
	my $name = sprintf 'p %d %d', $$, $prepared++;

	$session->query(join ";\n", 'BEGIN', "SELECT emit_free('orders')", 'SAVEPOINT s', "SELECT emit_free('payments')",
		(chance(0.5) ? 'ROLLBACK TO s' : ()), "SELECT emit('replayed', NULL)", q(SELECT enqueue(NULL, '-10 s')),
		"PREPARE TRANSACTION '$name'");
	pause(200);

	# Also those that others left.
	for my $gid (split /\n/, $session->query('SELECT gid FROM pg_prepared_xacts'))
	{
		$session->query((chance(0.7) ? 'COMMIT' : 'ROLLBACK') . " PREPARED '$gid'") if chance(0.5);
		pause(100);
	}
}

# Sagas, and what they wait for, perhaps in one transaction.
my $keys = 0;

sub start_sagas
{
	my ($session) = @_;
	my $key = sprintf "'%d %d'", $$, $keys++;
	my @steps = map { sprintf "SELECT start_saga('%s')", pick(qw(trip nap signalled both outer)) } 0 .. rand 3;

	push @steps, "SELECT start_saga('bought', $key)" if chance(0.5);
	push @steps, "SELECT cqrs_emit('settled', '{}', key => $key)" if chance(0.3);
	$session->query(join ";\n", chance(0.1) ? 'BEGIN ISOLATION LEVEL REPEATABLE READ' : 'BEGIN', @steps, chance(0.85) ? 'COMMIT' : 'ROLLBACK');
	$session->query("SELECT cqrs_emit('settled', '{}', key => $key)") if chance(0.3);
	pause(60);
}

our %EMITTERS = (
	starter => \&start_sagas,
	(map { ("emitter$_" => \&emit) } 1 .. 3),
	(map { my $key = "late$_"; ($key => sub { emit_late($_[0], $key) }) } 1 .. 2),
	preparer => \&emit_prepared);

# ------------------------------------------------------------------------
# Consumers
# ------------------------------------------------------------------------

# All, a part, more than once in a transaction, again after a savepoint, nothing
# in the end, or the client vanishes.
sub pull
{
	my ($session, $subscription) = @_;
	my $end = rand;
	my $size = pick(1, 5, 50, 100);
	my $all = "SELECT pull('$subscription', $size, $size, 1)";

	if ($end < 0.5)
	{
		$session->query($all);
	}
	elsif ($end < 0.65)
	{
		$session->query(sprintf "SELECT pull('$subscription', $size, %d, 1)", 1 + rand $size);
	}
	elsif ($end < 0.75)
	{
		$session->query(sprintf "SELECT pull('$subscription', $size, %d, 3)", 1 + rand 3 * $size);
	}
	elsif ($end < 0.85)
	{
		$session->query("BEGIN; SAVEPOINT s; $all; ROLLBACK TO s; $all; COMMIT");
	}
	else
	{
		$session->query("BEGIN; $all");
		die "leave\n" if $end < 0.88;
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

# receive(SESSION, SUBSCRIPTION, OPTIONS): the events: position, receipt, lane,
# whether to give up on it, and what goes into a file
sub receive
{
	my ($session, $subscription, $options) = @_;
	my $output = $session->query(sprintf q(SELECT concat_ws('|', position, receipt, coalesce(topic || ' ' || key, ''), gives_up('%s', payload)::int,
			payload->>'tag', event_id, topic, coalesce(key, ''), coalesce(payload->>'n', ''))
		FROM cqrs_receive('%s', %s) WITH ORDINALITY ORDER BY ordinality), $subscription, $subscription, $options);
	my @events;

	for (grep { /^\d+\|/ } split /\n/, $output)
	{
		my %event;

		@event{qw(position receipt lane poison line)} = split /\|/, $_, 5;
		push @events, \%event;
	}
	return @events;
}

sub positions { return "'{" . join(',', map { $_->{position} } @_) . "}'"; }

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
	write_batch($file, $id, map { $_->{line} } @rows);
	$session->query("SELECT cqrs_ack('filed', " . positions(@rows) . ')');
	$session->query("INSERT INTO batch (id) VALUES ('$id')");
	die "leave\n" if chance(0.03);
	$session->query(chance(0.9) ? 'COMMIT' : 'ROLLBACK');
	pause(20);
}

# Received in one transaction, settled in another, perhaps too late. Some is
# refused, or left to come again: then so is what of its lane is behind it. Who
# leaves something mostly gives the lease back; otherwise it runs out.
sub pull_leased
{
	my ($session, $file) = @_;
	my $id = join '-', $$, time, $batches++;
	my $lease = pick(20, 300, 500, 500);
	my @rows = receive($session, 'leased', sprintf("%d, lease => '$lease ms', wait => '%d ms'", pick(1, 30, 100), pick(0, 0, 20)));
	my $careful = chance(0.7);
	my (@done, @refused, @given_up, @left, %left);

	return pause(50) unless @rows;
	die "leave\n" if chance(0.02);
	pause(@rows > 1 ? 60 : 5);
	for my $row (@rows)
	{
		my $into = $left{ $row->{lane} } ? \@left : $row->{poison} ? \@given_up : chance(0.01) ? \@refused : !$careful && chance(0.03) ? \@left : \@done;

		push @$into, $row;
		$left{ $row->{lane} } = 1 if $row->{lane} && ($into == \@refused || $into == \@left);
	}
	write_batch($file, $id, map { $_->{line} } @done);
	my @statements;
	my $receipt = "receipt => '$rows[0]{receipt}'";
	push @statements, "SELECT cqrs_nack('leased', " . positions(@refused) . ", 'not now', retry_after => '20 ms', $receipt)" if @refused;
	push @statements, "SELECT cqrs_nack('leased', " . positions(@given_up) . ", 'poison', give_up => true, $receipt)" if @given_up;
	my @parts = @done > 2 && chance(0.3) ? ([ @done[ 1 .. $#done ] ], [ $done[0] ]) : @done ? (\@done) : ();
	push @statements, map { "SELECT cqrs_ack('leased', " . positions(reverse @$_) . ", $receipt)" } @parts;
	push @statements, "SELECT cqrs_renew('leased', $receipt, lease => '" . (@left && chance(0.8) ? 0 : 300) . " ms')" if @left || chance(0.1);
	push @statements, "INSERT INTO batch (id) VALUES ('$id')";
	$session->query(join ";\n", 'BEGIN', @statements, chance(0.97) ? 'COMMIT' : 'ROLLBACK');
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
	(map { ("leaser$_" => \&pull_leased) } 1 .. 3),
	drainer => \&drain);

1;
