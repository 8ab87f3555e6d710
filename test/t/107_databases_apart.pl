# Nobody holds up the delivery of a database that is not his: not who may create
# databases, and not who has what another database's manager needs for its start.

use strict;
use warnings;

use CqrsTest;
use Test::More;

my $node = new_server('main');

$node->start;
$node->safe_psql('postgres', 'CREATE ROLE maker LOGIN CREATEDB; CREATE DATABASE other');
set_up_recording($node, $_) for 'postgres', 'other';
emit_numbers($node, $_, 1) for 'postgres', 'other';
ok(wait_recorded($node, $_, 1), "$_: an event is delivered") for 'postgres', 'other';

# A copy that is refused has nobody leave.
my @before = processes($node, 'manager', 'postgres');
my $maker = new_session($node, 'other');
$maker->query('SET ROLE maker');
$maker->query('BEGIN');
$maker->query(q(DO $$
	BEGIN
		EXECUTE 'CREATE DATABASE copy TEMPLATE postgres';
	EXCEPTION WHEN OTHERS THEN
	END $$));
emit_numbers($node, 'postgres', 2);
ok(wait_recorded($node, 'postgres', 2), 'a copy that is tried within a function holds up nothing');
$maker->query('COMMIT');
like(error_of($node, 'other', 'SET ROLE maker; CREATE DATABASE copy TEMPLATE postgres'), qr/permission denied to copy database/, 'who does not own a database does not copy it');
emit_numbers($node, 'postgres', 3);
ok(wait_recorded($node, 'postgres', 3), '... which holds up nothing, either');
is_deeply([ processes($node, 'manager', 'postgres') ], \@before, '... it has kept its manager');
$maker->quit;

# A manager that begins, and has to wait, is not waited for.
my $dropping = new_session($node, 'postgres');
$dropping->query('BEGIN');
$dropping->query('DROP EXTENSION cqrs_outbox CASCADE');
for my $kind ('manager', 'launcher')
{
	$node->safe_psql('other', "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox $kind'");
}
ok($node->poll_query_until('other', "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox manager' AND datname = 'postgres' AND wait_event_type = 'Lock'"),
	'a manager waits for who drops the extension in its database');
emit_numbers($node, 'other', 2);
ok(wait_recorded($node, 'other', 2), 'events of another database are delivered');
$dropping->query('ROLLBACK');
$dropping->quit;
emit_numbers($node, 'postgres', 4);
ok(wait_recorded($node, 'postgres', 4), '... and here, when that is over');

$node->stop;
done_testing();
