# The points of a build with debug points (src/base/debug_point.h) at which a
# process waits, if cqrs_outbox.debug_points says so, for who holds them.

package DebugPoints;

use strict;
use warnings;

use Exporter 'import';

use CqrsTest;

our @EXPORT = qw(hold_point at_point);

# hold_point(SERVER, POINT): who comes there waits, until the session that is
# returned ends.
sub hold_point
{
	my ($node, $point) = @_;
	my $holder = new_session($node, 'postgres');

	$holder->query("SELECT pg_advisory_lock(hashtext('cqrs_outbox'), hashtext('$point'))");
	return $holder;
}

# at_point(SERVER, POINT): the pid of the one process that waits there.
sub at_point
{
	my ($node, $point) = @_;
	my $waits = "FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objsubid = 2"
	  . " AND classid::bigint = hashtext('cqrs_outbox')::bigint & 4294967295 AND objid::bigint = hashtext('$point')::bigint & 4294967295";

	$node->poll_query_until('postgres', "SELECT count(*) = 1 $waits") or die "nobody is at $point";
	return query($node, "SELECT pid $waits");
}

1;
