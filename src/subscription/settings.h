/*-------------------------------------------------------------------------
 *
 * settings.h
 *	  What is chosen when a subscription is made.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SETTINGS_H
#define CQRS_SETTINGS_H

#include "fmgr.h"

/* Columns of cqrs.subscription, and arguments of what makes and alters one. */
typedef enum CqrsSetting
{
	CQRS_SETTING_HANDLER,
	CQRS_SETTING_SERVER,
	CQRS_SETTING_PARTITIONS,
	CQRS_SETTING_ORDERING,
	CQRS_SETTING_MAX_ATTEMPTS,
	CQRS_SETTING_RETRY_DELAY,
	CQRS_SETTING_MAX_RETRY_DELAY,
	CQRS_SETTING_DELIVERY_TIMEOUT,
	CQRS_SETTING_MAX_RETAINED_SIZE,
	CQRS_SETTING_MAX_RETAINED_AGE,
	CQRS_SETTING_FORMAT,
	CQRS_SETTING_STRICT_KEY_ORDER,
	CQRS_SETTING_TRANSACTION,
	CQRS_SETTING_SEARCH_PATH,
	CQRS_SETTING_RATE,
	CQRS_SETTING_KEY_RATE,
	CQRS_SETTING_DELIVERY,
	CQRS_SETTING_ON_DIVERGENCE
} CqrsSetting;

#define CQRS_SETTINGS	(CQRS_SETTING_ON_DIVERGENCE + 1)

/* NULL: not given. */
typedef struct CqrsSettings
{
	NullableDatum values[CQRS_SETTINGS];
} CqrsSettings;

extern void cqrs_settings_none(CqrsSettings *settings);
extern void cqrs_settings_read(CqrsSettings *settings,
							   FunctionCallInfo fcinfo, const int *args);
extern void cqrs_setting_set(CqrsSettings *settings, CqrsSetting setting,
							 Datum value);
extern void cqrs_settings_check(const CqrsSettings *settings,
								const char *subscription);
extern void cqrs_settings_complete(CqrsSettings *settings);
extern int32 cqrs_settings_insert(const CqrsSettings *settings,
								  const char *subscription,
								  const char *runs);
extern char *cqrs_settings_differences(const CqrsSettings *settings,
									   int32 subscription_id);
extern bool cqrs_settings_differ(const CqrsSettings *settings,
								 int32 subscription_id, bool all);
extern void cqrs_settings_update(const CqrsSettings *settings,
								 int32 subscription_id);

/* Has this one been given? */
#define cqrs_setting_is_given(settings, setting) \
	(!(settings)->values[setting].isnull)

#endif							/* CQRS_SETTINGS_H */
