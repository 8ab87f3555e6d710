# The manual: pages of $CQRS_MANUAL, and their blocks.

package Manual;

use strict;
use warnings;

use Exporter 'import';

our @EXPORT = qw(blocks section);

# blocks(PAGE): its blocks with their tag, text, the line that this begins on, and
# the heading that they are below
sub blocks
{
	my ($page) = @_;
	my (@blocks, $block, $between);
	my $heading = '';

	open my $file, '<', "$ENV{CQRS_MANUAL}/$page" or die "$page: $!";
	while (my $line = <$file>)
	{
		if ($block)
		{
			if ($line =~ /^```\s*$/)
			{
				$block = undef;
				$between = 0;
			}
			else
			{
				$block->{text} .= $line;
			}
		}
		elsif ($line =~ /^```(\w*)\s*$/)
		{
			$block = { page => $page, heading => $heading, tag => $1, line => $. + 1, text => '' };
			# Is it the output of the one before?
			if ($1 eq 'text' && @blocks && !$between && $blocks[-1]{tag} =~ /^(sql|python)$/)
			{
				$blocks[-1]{output} = $block;
			}
			else
			{
				push @blocks, $block;
			}
		}
		elsif ($line =~ /\S/)
		{
			$between = 1;
			$heading = $1 if $line =~ /^#+ (.*?)\s*$/;
		}
	}
	close $file;
	die "$page:$block->{line}: the block has no end" if $block;
	return @blocks;
}

# section(PAGE, HEADING): the texts of its blocks of SQL
sub section
{
	my ($page, $heading) = @_;
	my @texts = map { $_->{text} } grep { $_->{heading} eq $heading && $_->{tag} eq 'sql' } blocks($page);

	die "$page has nothing below \"$heading\"" unless @texts;
	return @texts;
}

1;
