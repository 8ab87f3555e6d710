# Debians of other releases than this machine's, each with a PostgreSQL version
# of its own, to be run in with chroot. To be sourced with bash, as root.

die()
{
	echo "$*" >&2
	exit 1
}

need_debootstrap()
{
	[ "$(id -u)" = 0 ] || die "debootstrap needs root"
	command -v debootstrap >/dev/null || apt-get -q -y install debootstrap >/dev/null ||
		die "could not install debootstrap"
}

suite_of()
{
	case $1 in
		15) echo bookworm ;;
		17) echo trixie ;;
		18) echo forky ;;
		19) echo experimental ;;
		*) die "there is no Debian known here with PostgreSQL $1" ;;
	esac
}

# make_root VERSION ROOT
make_root()
{
	local suite log=$2.log packages=uuid-dev,libipc-run-perl,gcc,libc6-dev,make,pkg-config,librabbitmq-dev,librdkafka-dev,libssl-dev
	local script=/usr/share/debootstrap/scripts/sid
	local server="postgresql-$1,postgresql-server-dev-$1"

	[ ! -e "$2/usr/lib/postgresql/$1/bin/initdb" ] || return 0
	rm -rf "$2"
	suite=$(suite_of "$1")
	{
		if [ "$suite" != experimental ]; then
			debootstrap --variant=minbase --include="$packages,$server" "$suite" "$2" "" "$script"
		else
			# What is not there comes from sid. A mirror may be a while behind.
			debootstrap --variant=minbase --include="$packages" sid "$2" "" "$script" &&
				sed 's/ sid / experimental /' "$2/etc/apt/sources.list" >"$2/etc/apt/sources.list.d/experimental.list" &&
				chroot "$2" apt-get -q -o Acquire::Check-Valid-Until=false update &&
				DEBIAN_FRONTEND=noninteractive chroot "$2" apt-get -q -y install --no-install-recommends \
					-t experimental ${server//,/ }
		fi
	} >"$log" 2>&1 || { tail "$log"; die "could not install PostgreSQL $1 from Debian $suite"; }
}

# The server wants shared memory and random numbers. What is installed later must
# start no service, which would go on running.
mount_devices()
{
	printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d" && chmod 755 "$1/usr/sbin/policy-rc.d" &&
	mount --bind /dev "$1/dev" && mount -t tmpfs tmpfs "$1/dev/shm" && mount -t proc proc "$1/proc"
}

unmount_devices()
{
	local dir

	for dir in proc dev/shm dev; do
		! mountpoint -q "$1/$dir" || umount "$1/$dir"
	done
}

# copy_checkout ROOT: $top as it is, to be built there; and the certificates that
# this machine has besides its distribution's, which npm, pip and Maven may need
copy_checkout()
{
	[ -z "${NODE_EXTRA_CA_CERTS:-}" ] || cp "$NODE_EXTRA_CA_CERTS" "$1/etc/npm_certificates"
	mkdir -p "$1/usr/local/share/ca-certificates"
	find /usr/local/share/ca-certificates -name '*.crt' -exec cp {} "$1/usr/local/share/ca-certificates/" \;
	[ ! -x "$1/usr/sbin/update-ca-certificates" ] || chroot "$1" update-ca-certificates >/dev/null 2>&1
	rm -rf "$1/cqrs_outbox"
	mkdir "$1/cqrs_outbox"
	(cd "$top" && tar -c --exclude=.git --exclude='*.o' --exclude='*.so' .) | tar -x -C "$1/cqrs_outbox"
}

# run_in ROOT [VARIABLE=VALUE ...] COMMAND [ARGUMENT ...]
run_in()
{
	local root=$1
	shift

	chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
		${NODE_EXTRA_CA_CERTS:+NODE_EXTRA_CA_CERTS=/etc/npm_certificates} "$@"
}
