/*-------------------------------------------------------------------------
 *
 * tls.c
 *	  TLS to RabbitMQ.
 *
 * The library's own checks of certificates do not know addresses, nor the
 * system's store of authorities, and do not tell what is wrong. OpenSSL's do,
 * so they are set up in the library's context.
 *
 *-------------------------------------------------------------------------
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include "client.h"

static bool readable(const char *file, char *error);
static int	no_passphrase(char *buffer, int size, int writing, void *unused);
static int	verify(X509_STORE_CTX *context, void *client);

/*
 * A socket of the client's connection for TLS with a host, as the server's
 * options have it. NULL, with error set, if the files they name cannot be used.
 */
amqp_socket_t *
rabbitmq_tls_socket(RabbitClient *client, const char *host, char *error)
{
	const CqrsBrokerConnection *connection = client->connection;
	const char *ca = broker_option(connection, "tls_ca_file");
	const char *cert = broker_option(connection, "tls_cert_file");
	const char *key = broker_option(connection, "tls_key_file");
	amqp_socket_t *socket = amqp_ssl_socket_new(client->amqp);
	SSL_CTX    *context;

	if (socket == NULL)
	{
		broker_error(error, "could not set up TLS: out of memory");
		return NULL;
	}
	context = amqp_ssl_socket_get_context(socket);
	ERR_clear_error();
	SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);

	if ((ca != NULL && !readable(ca, error)) ||
		(cert != NULL && !readable(cert, error)) ||
		(key != NULL && !readable(key, error)))
		return NULL;
	SSL_CTX_set_default_passwd_cb(context, no_passphrase);
	if (cert != NULL && key != NULL &&
		amqp_ssl_socket_set_key(socket, cert, key) != AMQP_STATUS_OK)
	{
		broker_error(error, "could not use \"%s\" and \"%s\" as certificate and key: %s",
					 cert, key, rabbitmq_tls_reason());
		return NULL;
	}

	amqp_ssl_socket_set_verify_hostname(socket, 0);
	if (broker_option_bool(connection, "tls_verify", true))
	{
		X509_VERIFY_PARAM *param = SSL_CTX_get0_param(context);
		unsigned char address[16];
		int			done;

		if (ca != NULL)
			done = SSL_CTX_load_verify_locations(context, ca, NULL);
		else
			done = SSL_CTX_set_default_verify_paths(context);
		if (!done)
		{
			broker_error(error, "could not load certificate authorities from %s: %s",
						 ca != NULL ? ca : "the system's store",
						 rabbitmq_tls_reason());
			return NULL;
		}
		if (inet_pton(AF_INET, host, address) == 1 ||
			inet_pton(AF_INET6, host, address) == 1)
			done = X509_VERIFY_PARAM_set1_ip_asc(param, host);
		else
			done = X509_VERIFY_PARAM_set1_host(param, host, 0);
		if (!done)
		{
			broker_error(error, "could not set up TLS: out of memory");
			return NULL;
		}
		SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
		SSL_CTX_set_cert_verify_callback(context, verify, client);
	}
	else
		amqp_ssl_socket_set_verify_peer(socket, 0);
	return socket;
}

/*
 * What OpenSSL failed with last in this thread.
 */
const char *
rabbitmq_tls_reason(void)
{
	unsigned long code = ERR_peek_last_error();
	const char *reason = code != 0 ? ERR_reason_error_string(code) : NULL;

	return reason != NULL ? reason : "the other side ended it";
}

/*
 * May we read a file? What OpenSSL says of one that we may not is of no use.
 */
static bool
readable(const char *file, char *error)
{
	if (access(file, R_OK) == 0)
		return true;
	return broker_error(error,
						"could not read file \"%s\": it does not exist, or the database server's user may not read it",
						file);
}

/*
 * The passphrase of a key: OpenSSL would ask for it at the terminal.
 */
static int
no_passphrase(char *buffer, int size, int writing, void *unused)
{
	return -1;
}

/*
 * Verify the broker's certificate as OpenSSL does, and note what it finds.
 */
static int
verify(X509_STORE_CTX *context, void *client)
{
	int			verified = X509_verify_cert(context);

	if (verified <= 0)
		snprintf(((RabbitClient *) client)->tls_problem, RABBITMQ_TEXT_SIZE,
				 "%s",
				 X509_verify_cert_error_string(X509_STORE_CTX_get_error(context)));
	return verified > 0;
}
