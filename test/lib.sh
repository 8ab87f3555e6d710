# Shared by the scripts that need a built extension and a cluster of their own.
# To be sourced with bash; $top is the checkout.

PG_CONFIG=${PG_CONFIG:-pg_config}

die()
{
	echo "$*" >&2
	exit 1
}

# server_major: the major version of the server of $PG_CONFIG
server_major()
{
	"$PG_CONFIG" --version | sed 's/[^0-9]*\([0-9]*\).*/\1/'
}

# default_major: the one that the distribution has
default_major()
{
	apt-cache depends postgresql 2>/dev/null | sed -n 's/.*Depends: postgresql-\([0-9]*\)$/\1/p'
}

# install_missing [PACKAGE...]: what is missing to build and run, and these,
# from Debian's packages, if we may. A VERSION in a package's name is the
# server's.
install_missing()
{
	local packages=() package

	command -v gcc >/dev/null || packages+=(gcc libc6-dev)
	command -v make >/dev/null || packages+=(make)
	[ -e /usr/include/uuid/uuid.h ] || packages+=(uuid-dev)
	perl -MIPC::Run -e 1 2>/dev/null || packages+=(libipc-run-perl)
	if ! command -v "$PG_CONFIG" >/dev/null ||
		[ ! -e "$("$PG_CONFIG" --includedir-server)/postgres.h" ] ||
		[ ! -e "$("$PG_CONFIG" --pgxs)" ]; then
		packages+=(postgresql-server-dev-VERSION)
	fi
	if ! command -v "$PG_CONFIG" >/dev/null || [ ! -x "$("$PG_CONFIG" --bindir)/initdb" ]; then
		packages+=(postgresql-VERSION)
	fi
	for package; do
		! command -v "$PG_CONFIG" >/dev/null || package=${package/VERSION/$(server_major)}
		dpkg -s "$package" >/dev/null 2>&1 || packages+=("$package")
	done
	[ ${#packages[@]} -gt 0 ] || return 0

	local clusters_before log=/tmp/cqrs_outbox_apt.$$ major may_install=
	[ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || may_install=yes
	[ -z "$may_install" ] || apt-get -q update >"$log" 2>&1
	if command -v "$PG_CONFIG" >/dev/null; then
		major=$(server_major)
	else
		major=$(default_major)
	fi
	packages=("${packages[@]/VERSION/${major:-VERSION}}")
	[ -n "$may_install" ] || die "Missing; install as root: apt-get install ${packages[*]}"
	clusters_before=$(pg_lsclusters -h 2>/dev/null | awk '$4 == "online" {print $1, $2}')
	echo "Installing ${packages[*]}"
	DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends "${packages[@]}" >>"$log" 2>&1 ||
		{ cat "$log"; die "could not install ${packages[*]}"; }
	rm -f "$log"

	# A server's package starts it; nobody asked for that.
	[[ " ${packages[*]} " != *" rabbitmq-server "* ]] || service rabbitmq-server stop >/dev/null 2>&1
	pg_lsclusters -h 2>/dev/null | awk '$4 == "online" {print $1, $2}' | while read -r version name; do
		grep -qx "$version $name" <<<"$clusters_before" || pg_ctlcluster "$version" "$name" stop
	done
}

# What building the broker modules takes.
module_packages=(pkg-config librabbitmq-dev librdkafka-dev libssl-dev)

# install_brokers: RabbitMQ; programs that read what brokers were given, with
# the client libraries they need, in $scratch/consumers
install_brokers()
{
	[ ! -d "$scratch/consumers" ] || return 0
	install_missing openssl rabbitmq-server
	install_node_folder consumers
	export CQRS_CONSUMERS=$scratch/consumers
}

# install_clients: applications, with the drivers they need, in $CQRS_CLIENTS. Java
# may come from elsewhere, as Node.
install_clients()
{
	local packages=(python3-pip)

	command -v mvn >/dev/null || packages+=(maven)
	command -v javac >/dev/null || packages+=(default-jdk-headless)
	install_missing "${packages[@]}"
	install_node_folder clients
	export CQRS_CLIENTS=$scratch/clients
	(cd "$CQRS_CLIENTS" &&
		/usr/bin/python3 -m pip install --no-cache-dir --no-compile --target python -r requirements.txt &&
		mvn -B -Dmaven.repo.local="$scratch/maven" dependency:copy-dependencies) >"$scratch/clients.log" 2>&1 ||
		{ cat "$scratch/clients.log"; die "could not install what test/clients needs"; }
	rm -rf "$scratch/maven"
}

# install_mermaid: what draws diagrams, $CQRS_MERMAID -i FILE -o PICTURE, in
# Debian's browser
install_mermaid()
{
	install_missing chromium
	install_node_folder diagrams
	cat >"$scratch/diagrams/browser.json" <<-X
		{"executablePath": "$(command -v chromium)", "args": ["--no-sandbox"]}
	X
	export CQRS_MERMAID="$scratch/diagrams/node_modules/.bin/mmdc -q -p $scratch/diagrams/browser.json"
}

# install_node_folder FOLDER: of test/, with the packages it needs, in $scratch.
# Node may come from elsewhere.
install_node_folder()
{
	{ command -v node && command -v npm; } >/dev/null || install_missing nodejs npm
	cp -r "$top/test/$1" "$scratch/"
	(cd "$scratch/$1" &&
		PUPPETEER_SKIP_DOWNLOAD=1 npm install --no-audit --no-fund --no-package-lock --cache "$scratch/npm") \
		>"$scratch/npm.log" 2>&1 || { cat "$scratch/npm.log"; die "could not install what test/$1 needs"; }
	rm -rf "$scratch/npm"
}

# install_languages: those that tests have handlers in
install_languages()
{
	[ -e "$("$PG_CONFIG" --sharedir)/extension/plpython3u.control" ] ||
		install_missing postgresql-plpython3-VERSION
}

# install_kafka: Kafka, of two major versions, and a client of Python's, in $CQRS_KAFKA.
# Java may come from elsewhere, as Node.
install_kafka()
{
	local packages=(python3-pip)

	[ ! -d "$scratch/kafka" ] || return 0
	command -v mvn >/dev/null || packages+=(maven)
	command -v java >/dev/null || packages+=(default-jre-headless)
	install_missing "${packages[@]}"
	cp -r "$top/test/kafka" "$scratch/kafka"
	export CQRS_KAFKA=$scratch/kafka
	cached kafka-4.4.0 "$CQRS_KAFKA/4" download_jars "$CQRS_KAFKA/pom.xml" -Dkafka.version=4.4.0
	cached kafka-3.9.2 "$CQRS_KAFKA/3" download_jars "$CQRS_KAFKA/pom.xml" -Dkafka.version=3.9.2
	cached confluent-kafka-2.16.1 "$CQRS_KAFKA/python" download_python confluent-kafka==2.16.1
	own "$CQRS_KAFKA"
}

# cached NAME FOLDER COMMAND...: what the command, with one more argument, puts into
# a folder of that name, in FOLDER. It is large, and kept under NAME for the next time.
cached()
{
	local cache=${XDG_CACHE_HOME:-$HOME/.cache}/cqrs_outbox name=$1 folder=$2
	shift 2

	if [ ! -d "$cache/$name" ]; then
		mkdir -p "$cache"
		"$@" "$cache/$name.$$" >"$scratch/download.log" 2>&1 ||
			{ rm -rf "$cache/$name.$$"; cat "$scratch/download.log"; die "could not download $name"; }
		# Another run may have been faster.
		mv -nT "$cache/$name.$$" "$cache/$name" && rm -rf "$cache/$name.$$"
	fi
	cp -r "$cache/$name" "$folder"
}

# download_jars POM DEFINITION FOLDER: what the POM depends on
download_jars()
{
	mvn -B -f "$1" "$2" -Dmaven.repo.local="$scratch/maven" dependency:copy-dependencies -DoutputDirectory="$3"
	rm -rf "$scratch/maven"
}

# download_python PACKAGE FOLDER
download_python()
{
	/usr/bin/python3 -m pip install --no-cache-dir --no-deps --target "$2" "$1"
}

# install_python_cqrs: both major versions of python-cqrs, what they need, and the
# program that tries them, in $CQRS_PYTHON_CQRS
install_python_cqrs()
{
	local folder=$scratch/python_cqrs

	install_missing python3-pip
	cp -r "$top/test/python_cqrs" "$folder"
	pip_install "$folder/both" -r "$folder/requirements.txt"
	pip_install "$folder/4" --no-deps python-cqrs==4.15.1
	pip_install "$folder/5" --no-deps python-cqrs==5.3.0
	own "$folder"
	export CQRS_PYTHON_CQRS=$folder
}

# install_orms: ORMs, and the programs that try them, in $CQRS_ORMS
install_orms()
{
	local folder=$scratch/orms

	install_missing python3-pip
	cp -r "$top/test/orms" "$folder"
	pip_install "$folder/python" -r "$folder/requirements.txt"
	own "$folder"
	export CQRS_ORMS=$folder
}

# pip_install FOLDER ARGUMENTS...
pip_install()
{
	/usr/bin/python3 -m pip install --no-cache-dir --target "$@" >"$scratch/pip.log" 2>&1 ||
		{ cat "$scratch/pip.log"; die "could not install what $1 needs"; }
}

# install_pgmq: into the server of $PG_CONFIG. It is SQL alone, which comes with the
# project's client for Python.
install_pgmq()
{
	local folder

	install_missing python3-pip
	pip_install "$scratch/pgmq" --no-deps pgmq==1.1.4
	folder=$("$PG_CONFIG" --sharedir)/extension
	cp "$scratch/pgmq/pgmq/sql/pgmq.sql" "$folder/pgmq--1.13.0.sql"
	printf "%s\n" "default_version = '1.13.0'" "schema = 'pgmq'" "relocatable = false" >"$folder/pgmq.control"
}

# install_manual: README.md and docs/ in $CQRS_MANUAL
install_manual()
{
	mkdir "$scratch/manual"
	cp -r "$top/README.md" "$top/docs" "$scratch/manual/"
	own "$scratch/manual"
	export CQRS_MANUAL=$scratch/manual
}

# build_kafka_cluster: what stands for Kafka in tests
build_kafka_cluster()
{
	cc -O2 -Wall -Wextra -Werror $(pkg-config --cflags rdkafka) -o "$scratch/kafka_cluster" \
		"$top/test/mock/kafka_cluster.c" $(pkg-config --libs rdkafka) || die "could not build kafka_cluster"
	export CQRS_KAFKA_CLUSTER=$scratch/kafka_cluster
}

# use_server PG_CONFIG
use_server()
{
	PG_CONFIG=$1
	bindir=$("$PG_CONFIG" --bindir)
	pgxs=$(dirname "$(dirname "$(dirname "$("$PG_CONFIG" --pgxs)")")")
}

# copy_server: use a copy of the server, so that nothing is changed in one that
# serves somebody else. A server finds its files by where it is itself, if the
# copy has all its folders at the same places below $server_copy.
copy_server()
{
	local folder program libraries

	server_copy=$scratch/server
	use_server "$PG_CONFIG"
	libraries=$("$PG_CONFIG" --pkglibdir)
	for folder in "$libraries" "$("$PG_CONFIG" --sharedir)" "$("$PG_CONFIG" --includedir-server)"; do
		[[ $folder = /?* && -d $folder ]] || die "$PG_CONFIG does not say where the server's files are"
		mkdir -p "$server_copy$folder"
		cp -a "$folder/." "$server_copy$folder/" || die "could not copy $folder"
	done
	# Its folder may have everybody's programs.
	mkdir -p "$server_copy$bindir"
	for program in initdb postgres psql {create,drop}{db,user} vacuumdb reindexdb clusterdb "$bindir"/pg{_,bench}*; do
		program=$bindir/${program##*/}
		[ ! -e "$program" ] || cp -L "$program" "$server_copy$bindir/"
	done

	if [ "$("$server_copy$bindir/pg_config" --pkglibdir)" -ef "$server_copy$libraries" ]; then
		use_server "$server_copy$bindir/pg_config"
	else
		echo "A copy of the server would not find its files: installing into $libraries."
		rm -rf "$server_copy"
		server_copy=
	fi
}

# build_and_install [VARIABLE=VALUE ...]: for the server of $PG_CONFIG.
build_and_install()
{
	build_and_install_from "$top" "$@"
}

# build_and_install_from FOLDER [VARIABLE=VALUE ...]
build_and_install_from()
{
	local log=$scratch/build.log folder=$1
	shift

	[ -w "$("$PG_CONFIG" --pkglibdir)" ] ||
		die "Cannot install into $("$PG_CONFIG" --pkglibdir); run as root, or set PG_CONFIG."
	make -j "$(nproc)" -C "$folder" PG_CONFIG="$PG_CONFIG" "$@" >"$log" 2>&1 || { cat "$log"; die "could not build"; }
	make -C "$folder" PG_CONFIG="$PG_CONFIG" "$@" install >"$log" 2>&1 || { cat "$log"; die "could not install"; }
}

# copy_sources FOLDER: as they are, without what was built
copy_sources()
{
	mkdir "$1"
	(cd "$top" && tar -c --exclude=./.git --exclude=./dist --exclude=./test/results --exclude='*.o' --exclude='*.so' --exclude='*.bc' .) |
		tar -x -C "$1"
}

# Servers refuse to run as root.
if [ "$(id -u)" = 0 ]; then
	as_user() { (cd "$scratch" && runuser -u postgres -- "$@"); }
	own() { chown -R postgres "$1"; }
else
	as_user() { (cd "$scratch" && "$@"); }
	own() { :; }
fi

# A folder of our own, and nothing left behind.
make_scratch()
{
	scratch=$(mktemp -d "${TMPDIR:-/tmp}/cqrs_outbox.XXXXXX")
	chmod 755 "$scratch"
	own "$scratch"
	trap clean_up EXIT
	trap 'exit 130' INT TERM
}

clean_up()
{
	stop_servers "$scratch"
	rm -rf "$scratch"
}

# stop_servers FOLDER: whose data folders are below it
stop_servers()
{
	local pid_file

	find "$1" -name postmaster.pid 2>/dev/null | while read -r pid_file; do
		as_user "$bindir/pg_ctl" -D "$(dirname "$pid_file")" -m immediate -w stop
	done >/dev/null 2>&1
}

# start_cluster NAME [CONFIGURATION FILE]: on a socket in $scratch/cluster_NAME
start_cluster()
{
	start_cluster_in "$scratch/cluster_$1" "${@:2}"
}

# start_cluster_in FOLDER [CONFIGURATION FILE]
start_cluster_in()
{
	local dir=$1

	mkdir "$dir"
	own "$dir"
	as_user "$bindir/initdb" -D "$dir/data" -A trust -U postgres --no-sync -E UTF8 --locale=C >"$dir.initdb" 2>&1 ||
		{ cat "$dir.initdb"; die "could not make a cluster"; }
	{
		echo "listen_addresses = ''"
		echo "unix_socket_directories = '$dir'"
		echo "fsync = off"
		[ $# -lt 2 ] || cat "$2"
	} >>"$dir/data/postgresql.conf"
	as_user "$bindir/pg_ctl" -D "$dir/data" -l "$dir/log" -w start >/dev/null ||
		{ cat "$dir/log"; die "could not start a cluster"; }
	export PGHOST=$dir PGUSER=postgres PGPORT=5432 PGDATABASE=postgres
}
