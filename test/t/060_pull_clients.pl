# Several clients pull from one subscription, and do all that clients do: in one
# transaction or in two, with leases that run out, acknowledging some, refusing
# some, within savepoints, dying; meanwhile events are emitted, by transactions
# that commit late, too, and the subscription is moved and redriven.
#
# Nothing is lost: each event is acknowledged by a client that received it, in
# the end. Nothing that is acknowledged comes again, unless the subscription
# was moved. Each key is in order.
#
#   CQRS_PULL_RUNS  how many runs
#   CQRS_PULL_SEED  of the first run: the next one has the next

use strict;
use warnings;

use CqrsTest;
use Test::More;

my $runs = $ENV{CQRS_PULL_RUNS} || 20;
my $seed = $ENV{CQRS_PULL_SEED} || time() % 1000000;
my $node = new_server('clients');

$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION cqrs_outbox');

my $main = new_session($node, 'postgres');
my $late = new_session($node, 'postgres');
my @clients = map { { name => $_ } } 1 .. 3;
my ($subscription, $topic, %events, %acked, @faults, $clock, $in_late, $trace);
my $strict = 0;
my %total = map { $_ => 0 } qw(emitted received acknowledged refused again expired);

# sql(CLIENT, SQL): the output; an error is the line "ERROR:  <SQLSTATE>"
sub sql
{
	my ($client, $sql) = @_;

	if (!$client->{session})
	{
		$client->{session} = new_session($node, 'postgres');
		$client->{session}->query("\\set VERBOSITY sqlstate\nSET client_min_messages = error");
	}
	my $out = $client->{session}->query($sql);

	push @$trace, "$client->{name}: $sql\n   " . join(' / ', split /\n/, $out);
	return $out;
}

sub fault
{
	push @faults, "seed $strict: $_[0]";
	push @$trace, "FAULT $_[0]";
}

# emit(SESSION, COUNT, HEADER): the events, not committed yet
sub emit
{
	my ($session, $count) = @_;
	my @new;

	for (1 .. $count)
	{
		my $n = 1 + keys %events;

		$events{$n} = { n => $n, key => 'k' . int(rand(4)), emitted => ++$clock };
		push @new, $events{$n};
	}
	$session->query(join ";\n", map { "SELECT cqrs_emit('happened_$topic', '{\"n\": $_->{n}}', key => '$_->{key}')" } @new);
	push @$trace, 'emitted ' . join(' ', map { "$_->{n}$_->{key}" } @new);
	return @new;
}

sub committed
{
	$_->{committed} = ++$clock for @_;
	$total{emitted} += @_;
}

# May a client have this event now?
sub check_event
{
	my ($client, $event, $batch) = @_;

	if (!$event->{committed})
	{
		fault("$event->{n} was received before its commit");
		return;
	}
	fault("$event->{n} came again, though acknowledged") if $acked{ $event->{n} };
	for my $before (values %events)
	{
		next if $before->{key} ne $event->{key} || !$before->{committed} || $before->{committed} > $event->{emitted};
		next if $before->{dead} || $acked{ $before->{n} } || $batch->{ $before->{n} } || $client->{settling}{ $before->{n} };
		next if $client->{held}{ $before->{n} } && $client->{in_xact};
		fault("$event->{n} overtook $before->{n} of the same key");
	}
}

sub receive
{
	my ($client, $lease) = @_;
	my $most = 1 + int(rand(6));
	my $out = sql($client, "SELECT 'event', position, payload->>'n', attempts, receipt, partition FROM cqrs_receive('$subscription', $most" .
		($lease ? ", lease => '$lease'" : '') . ')');
	my (%batch, @batch);

	fault("receive: $out") if $out =~ /ERROR/;
	while ($out =~ /^event\|(\d+)\|(\d+)\|(\d+)\|(\S+)\|(\d+)$/mg)
	{
		my $got = { position => $1, n => $2, receipt => $4, partition => $5, leased => $lease, xact => $client->{in_xact} };

		# It covers what this transaction received there before, too.
		for (grep { $_->{xact} && !$_->{leased} && $_->{partition} == $5 } values %{ $client->{held} })
		{
			$_->{receipt} = $4;
			$_->{leased} = $lease;
		}

		check_event($client, $events{$2}, \%batch);
		$batch{$2} = 1;
		push @batch, $got;
	}
	fault("more than $most") if @batch > $most;
	$total{received} += @batch;
	$client->{held}{ $_->{n} } = $_ for @batch;
	return @batch;
}

sub forget
{
	my ($client) = @_;

	$client->{held} = {};
	$client->{settling} = {};
	$client->{in_xact} = 0;
}

sub begin
{
	my ($client) = @_;

	return if $client->{in_xact};
	sql($client, 'BEGIN');
	$client->{in_xact} = 1;
}

sub finish
{
	my ($client, $how) = @_;

	return unless $client->{in_xact};
	my $out = sql($client, $how);

	if ($how eq 'COMMIT' && $out !~ /ERROR/)
	{
		settled($client);
	}
	else
	{
		$client->{settling} = {};
	}
	$client->{in_xact} = 0;

	# What was received without a lease may come to others now.
	for my $n (keys %{ $client->{held} })
	{
		my $event = $client->{held}{$n};

		delete $client->{held}{$n} if $event->{xact} && ($how ne 'COMMIT' || !$event->{leased});
		$event->{xact} = 0;
	}
}

sub settled
{
	my ($client) = @_;

	for my $n (keys %{ $client->{settling} })
	{
		next if $client->{settling}{$n} ne 'ack';
		$acked{$n} = 1;
		$total{acknowledged}++;
	}
	$client->{settling} = {};
}

# settle(CLIENT, ACK, EVENTS...): by position and receipt
sub settle
{
	my ($client, $ack, @held) = @_;
	my %by;

	push @{ $by{ $_->{receipt} } }, $_ for @held;
	for my $receipt (keys %by)
	{
		my @positions = map { $_->{position} } @{ $by{$receipt} };
		my $array = 'ARRAY[' . join(',', @positions) . ']::bigint[]';
		my $out = sql($client, $ack ? "SELECT cqrs_ack('$subscription', $array, '$receipt')" :
			"SELECT cqrs_nack('$subscription', $array, 'no', '" . (rand() < 0.5 ? '0' : '20 ms') . "', " .
			(rand() < 0.1 ? 'true' : 'false') . ", '$receipt')");

		if ($out =~ /OB003/)
		{
			$total{refused}++;
			delete $client->{held}{ $_->{n} } for @{ $by{$receipt} };
			finish($client, 'ROLLBACK') if $client->{in_xact};
			return;
		}
		if ($out !~ /^\d+$/)
		{
			fault("settled: $out");
			return;
		}
		if ($out != @positions)
		{
			fault("settled $out of " . scalar @positions);
		}
		for my $event (@{ $by{$receipt} })
		{
			$client->{settling}{ $event->{n} } = $ack ? 'ack' : 'nack';
			delete $client->{held}{ $event->{n} };
		}
		settled($client) unless $client->{in_xact};
	}
}

sub some
{
	return grep { rand() < 0.5 } sort { $a->{n} <=> $b->{n} } @_;
}

sub act
{
	my $client = $clients[ int(rand(@clients)) ];
	my $what = rand();

	if ($what < 0.12)
	{
		committed(emit($main, 1 + int(rand(4))));
	}
	elsif ($what < 0.15)
	{
		if (!$in_late)
		{
			$late->query('BEGIN');
			$in_late = [ emit($late, 1 + int(rand(2))) ];
		}
		else
		{
			$late->query('COMMIT');
			committed(@$in_late);
			$in_late = undef;
		}
	}
	elsif ($what < 0.45)
	{
		my $kind = rand();

		if ($kind < 0.5)
		{
			begin($client);
			receive($client);
		}
		elsif ($kind < 0.9)
		{
			receive($client, rand() < 0.6 ? '15 ms' : '1 h');
		}
		elsif (!$client->{in_xact})
		{
			receive($client);
		}
	}
	elsif ($what < 0.5)
	{
		# A savepoint that is rolled back, with what was received since.
		begin($client);
		my %held = map { $_ => { %{ $client->{held}{$_} } } } keys %{ $client->{held} };
		my %settling = %{ $client->{settling} };

		sql($client, 'SAVEPOINT s');
		my @batch = receive($client);
		if (@batch && rand() < 0.5)
		{
			sql($client, "SELECT cqrs_ack('$subscription')");
		}
		sql($client, 'ROLLBACK TO s');
		$client->{held} = \%held;
		$client->{settling} = \%settling;
		if (!grep { $_->{xact} } values %held)
		{
			my $out = sql($client, "SAVEPOINT s; SELECT cqrs_ack('$subscription'); ROLLBACK TO s");

			fault("acknowledged after a rollback: $out")
				unless $out =~ /OB003/ || $out =~ /^0$/m || $client->{leased} || keys %held || keys %settling;
		}
	}
	elsif ($what < 0.7)
	{
		settle($client, 1, some(values %{ $client->{held} }));
	}
	elsif ($what < 0.76)
	{
		settle($client, 0, some(values %{ $client->{held} }));
	}
	elsif ($what < 0.9)
	{
		# All that this transaction received.
		if ($client->{in_xact} && rand() < 0.7)
		{
			my @mine = grep { $_->{xact} } values %{ $client->{held} };
			my $out = sql($client, "SELECT cqrs_ack('$subscription')");

			if ($out =~ /^\d+$/)
			{
				fault("acknowledged $out of " . scalar @mine) if $out != @mine;
				for (@mine)
				{
					$client->{settling}{ $_->{n} } = 'ack';
					delete $client->{held}{ $_->{n} };
				}
			}
			else
			{
				fault("acknowledged what was received: $out") if @mine || $out !~ /OB003/;
				finish($client, 'ROLLBACK');
			}
		}
		finish($client, 'COMMIT');
	}
	elsif ($what < 0.93)
	{
		finish($client, 'ROLLBACK');
	}
	elsif ($what < 0.95)
	{
		# It dies.
		if ($client->{session})
		{
			$main->query("SELECT pg_terminate_backend($client->{pid}, 10000)")
				if $client->{pid} = ($client->{session}->query('SELECT pg_backend_pid()') =~ /(\d+)/)[0];
			eval { $client->{session}->quit };
			$client->{session} = undef;
		}
		forget($client);
	}
	elsif ($what < 0.97)
	{
		my ($held) = values %{ $client->{held} };

		return unless $held;
		my $out = sql($client, "SELECT cqrs_renew('$subscription', '$held->{receipt}', '" . (rand() < 0.3 ? '0' : '30 ms') . "') > '-infinity'");

		if ($out =~ /ERROR/)
		{
			fault("renewed: $out") unless $out =~ /OB003/;
			delete $client->{held}{$_} for grep { $client->{held}{$_}{receipt} eq $held->{receipt} } keys %{ $client->{held} };
			finish($client, 'ROLLBACK');
		}
	}
	elsif (!grep { $_->{in_xact} } @clients)
	{
		if (rand() < 0.3)
		{
			$main->query("SELECT cqrs_seek('$subscription', 'earliest')");
			push @$trace, 'moved';
			%acked = ();
			$_->{dead} = 0 for values %events;
			$total{again}++;
		}
		else
		{
			redrive();
		}
	}
	dead();
}

# Which events were given up?
sub dead
{
	my $out = $main->query("SELECT payload->>'n' FROM cqrs_dead_letters WHERE subscription = '$subscription'");

	$_->{dead} = 0 for values %events;
	$events{$_}{dead} = 1 for split /\n/, $out;
}

sub redrive
{
	# One that was acknowledged since it died, the subscription having been moved,
	# comes again all the same.
	delete $acked{ $_->{n} } for grep { $_->{dead} } values %events;
	my $out = $main->query("SELECT cqrs_redrive_all('$subscription')");

	push @$trace, "redriven $out";
	dead();
}

# Everything is acknowledged in the end.
sub drain
{
	my $client = { name => 'last', held => {}, settling => {}, in_xact => 0 };
	my $idle = 0;

	for (@clients)
	{
		finish($_, rand() < 0.5 ? 'COMMIT' : 'ROLLBACK');
		forget($_);
	}
	if ($in_late)
	{
		$late->query('COMMIT');
		committed(@$in_late);
		$in_late = undef;
	}
	$main->query($due_now);
	for (1 .. 400)
	{
		redrive();
		last unless grep { $_->{committed} && !$acked{ $_->{n} } } values %events;
		begin($client);
		receive($client);
		$main->query("UPDATE cqrs.cursor SET leased_until = NULL") unless keys %{ $client->{held} };
		$main->query($due_now) unless keys %{ $client->{held} };
		settle($client, 1, values %{ $client->{held} });
		finish($client, 'COMMIT');
	}
	my @lost = sort { $a <=> $b } map { $_->{n} } grep { $_->{committed} && !$acked{ $_->{n} } } values %events;

	fault('lost: ' . join(' ', @lost)) if @lost;
	begin($client);
	fault('more came') if receive($client);
	finish($client, 'ROLLBACK');
	$client->{session}->quit if $client->{session};
}

note("seed $seed");

# Some seeds have no receipt refused: then some more runs.
for (my $run = 0; $run < $runs || ($total{refused} == 0 && $run < 10 * $runs); $run++)
{
	$strict = $seed + $run;
	srand($strict);
	$topic = "t$run";
	$subscription = "s$run";
	%events = ();
	%acked = ();
	$clock = 0;
	$trace = [];
	forget($_) for @clients;
	my $partitions = 1 + int(rand(2));
	$main->query("SELECT cqrs_register_event('happened_$topic', '$topic');
		SELECT cqrs_subscribe('$subscription', ARRAY['$topic'], partitions => $partitions,
			max_attempts => " . (rand() < 0.5 ? 3 : 0) . ", retry_delay => '5 ms', max_retry_delay => '20 ms')");
	act() for 1 .. 60;
	drain();
	$main->query("SELECT cqrs_unsubscribe('$subscription'); SELECT cqrs_drop_topic('$topic')");
	if (@faults)
	{
		diag(join "\n", @$trace);
		last;
	}
}
is(join("\n", @faults), '', "$runs runs from seed $seed: nothing lost, nothing acknowledged unseen, each key in order");
cmp_ok($total{acknowledged}, '>=', $total{emitted}, 'events were emitted, and acknowledged');
cmp_ok($total{refused}, '>', 0, 'receipts were refused');
note(join ', ', map { "$total{$_} $_" } sort keys %total);
$_->{session} && $_->{session}->quit for @clients;
$main->quit;
$late->quit;
$node->stop;
done_testing();
