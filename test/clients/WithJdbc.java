// An application with JDBC, which sends each value with the type that it is set as:
// a string as varchar, unless it is set as Types.OTHER.

import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Types;
import java.time.OffsetDateTime;
import java.util.ArrayList;
import java.util.List;
import java.util.UUID;
import org.postgresql.util.PGInterval;
import org.postgresql.util.PGobject;

public class WithJdbc {
	// The text of a jsonb value, so that setObject() knows it from other strings.
	record Json(String text) {}

	static final UUID MEETING = UUID.fromString("00000000-0000-4000-8000-000000000017");
	static final UUID EVENT_ID = UUID.fromString("00000000-0000-4000-8000-000000000018");
	static final OffsetDateTime LATER = OffsetDateTime.parse("2100-01-01T00:00:00Z");
	static Connection connection;

	static List<Object[]> run(String label, String sql, Object... arguments) throws SQLException {
		List<Object[]> rows = new ArrayList<>();

		try (PreparedStatement statement = connection.prepareStatement(sql)) {
			for (int i = 0; i < arguments.length; i++)
				if (arguments[i] instanceof Json json)
					statement.setObject(i + 1, json.text(), Types.OTHER);
				else
					statement.setObject(i + 1, arguments[i]);
			ResultSet result = statement.executeQuery();
			while (result.next()) {
				Object[] row = new Object[result.getMetaData().getColumnCount()];
				StringBuilder line = new StringBuilder(label);

				for (int i = 0; i < row.length; i++) {
					row[i] = result.getObject(i + 1);
					line.append(" | ").append(row[i] instanceof PGobject ? result.getString(i + 1) : row[i]);
				}
				System.out.println(line);
				rows.add(row);
			}
		}
		return rows;
	}

	static long acknowledge(List<Object[]> batch) throws SQLException {
		try (PreparedStatement statement = connection.prepareStatement("SELECT cqrs_ack(?, ?, ?)")) {
			statement.setString(1, "pulled");
			statement.setArray(2, connection.createArrayOf("bigint", batch.stream().map(row -> row[4]).toArray()));
			statement.setObject(3, batch.get(0)[5]);
			ResultSet result = statement.executeQuery();
			result.next();
			return result.getLong(1);
		}
	}

	public static void main(String[] args) throws SQLException {
		connection = DriverManager.getConnection("jdbc:" + System.getenv("DATABASE_URL"));
		Object topics = connection.createArrayOf("text", new String[] {"meetings"});

		run("event", "SELECT cqrs_register_event(?, ?)", "joined", "meetings");
		run("event", "SELECT cqrs_register_event(?, ?, ?)", "typed", null, "named");
		for (int i = 0; i < 2; i++)
			run("command", "SELECT cqrs_register_command(?, ?, ?)", "Join", "join_meeting", null);
		Object handlers = connection.createArrayOf("text", new String[] {"join_meeting", "pass_on"});
		run("chain", "SELECT cqrs_register_chain(?, ?)", "Chain", handlers);
		run("subscribe", "SELECT cqrs_subscribe(?, ?, ?, retry_delay => ?)",
			"handled", topics, "ignore", new PGInterval("1 second"));
		run("subscribe", "SELECT cqrs_subscribe(?, ?, ?, ?, ?, ?, ?)",
			"pulled", topics, null, null, null, null, null);

		for (int i = 0; i < 2; i++)
			run("send", "SELECT cqrs_send(?, ?, ?)", "Join", new Json("{\"n\": 1}"), "once");
		run("send", "SELECT cqrs_send(?, ?, ?)", "Join", null, null);
		try {
			run("send", "SELECT cqrs_send(?, ?, ?)", "Unknown", null, null);
		} catch (SQLException error) {
			System.out.println("error | " + error.getSQLState());
		}

		for (Object key : new Object[] {"text", 17, MEETING, null})
			run("emit", "SELECT cqrs_emit(?, ?, ?, ?)", "joined", new Json("{\"n\": 2}"), key, null);
		run("emit", "SELECT cqrs_emit(?, ?, ?, ?)", "joined", null, "text", new Json("{\"tenant\": \"a\"}"));
		String insert = "INSERT INTO cqrs_topics.meetings (event_name, key, payload, headers, event_id)"
			+ " VALUES (?, ?, ?, ?, ?) RETURNING event_id, position";
		for (Object key : new Object[] {"text", 17, MEETING, null})
			run("insert", insert, "joined", key, new Json("{\"n\": 3}"), null, null);
		run("insert", insert, "joined", "text", null, new Json("{\"tenant\": \"a\"}"), EVENT_ID);

		connection.setAutoCommit(false);
		long acknowledged = 0;
		while (acknowledged < 10) {
			List<Object[]> batch = run("receive", "SELECT event_name, key, payload, headers, position, receipt"
				+ " FROM cqrs_receive(?, ?)", "pulled", 100);
			if (!batch.isEmpty())
				acknowledged += acknowledge(batch);
			connection.commit();
		}
		connection.setAutoCommit(true);
		System.out.println("acknowledged | " + acknowledged);
		run("receive", "SELECT position FROM cqrs_receive(?, ?)", "pulled", null);

		for (Object key : new Object[] {"text", 17, MEETING})
			run("enqueue", "SELECT cqrs_enqueue(?, ?::jsonb, ?, ?)", "Join", "{\"n\": 4}", key, LATER);
		run("enqueue", "SELECT cqrs_enqueue(?, ?, ?, ?)", "Join", null, null, null);
		run("enqueued", "SELECT command_name, key, payload, state, run_at = ?"
			+ " FROM cqrs_enqueued_commands ORDER BY command_id", LATER);

		try (ResultSet result = connection.createStatement().executeQuery(
				"SELECT payload, event_id, position FROM cqrs_topics.meetings LIMIT 1")) {
			result.next();
			if (!result.getString(1).startsWith("{") || !(result.getObject(2) instanceof UUID)
				|| !(result.getObject(3) instanceof Long))
				throw new AssertionError("other types");
		}
	}
}
