/* What librabbitmq, the C client of RabbitMQ, publishes to a quorum queue with a window of confirms.
 *
 * publish HOST PORT VHOST QUEUE COUNT WINDOW: persistent, mandatory messages of 400 bytes, in a window of so many
 * that aren't confirmed yet (1 waits for each). Prints messages per second and the CPU seconds used.
 */
#if __has_include(<rabbitmq-c/amqp.h>)
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/tcp_socket.h>
#else /* before 0.13 */
#include <amqp.h>
#include <amqp_tcp_socket.h>
#endif

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static double cpu(void) {
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  return used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static void check(int failed, const char *what) {
  if (failed) {
    fprintf(stderr, "%s failed\n", what);
    exit(1);
  }
}

static unsigned char *confirmed; /* by tag */
static uint64_t lowest = 1, unconfirmed;

static void settle(uint64_t tag) {
  unconfirmed -= !confirmed[tag];
  confirmed[tag] = 1;
}

/* Read confirms until at most so many messages are without one. */
static void confirm(amqp_connection_state_t connection, uint64_t allowed) {
  while (unconfirmed > allowed) {
    amqp_frame_t frame;
    check(amqp_simple_wait_frame(connection, &frame), "waiting for a confirm");
    check(frame.frame_type != AMQP_FRAME_METHOD || frame.payload.method.id != AMQP_BASIC_ACK_METHOD, "a confirm");
    const amqp_basic_ack_t *ack = frame.payload.method.decoded;
    if (ack->multiple)
      while (lowest <= ack->delivery_tag) settle(lowest++);
    else
      settle(ack->delivery_tag);
    amqp_maybe_release_buffers(connection);
  }
}

int main(int argc, char **argv) {
  check(argc != 7, "reading HOST PORT VHOST QUEUE COUNT WINDOW");
  const uint64_t count = strtoull(argv[5], NULL, 10), window = strtoull(argv[6], NULL, 10);
  amqp_connection_state_t connection = amqp_new_connection();
  amqp_socket_t *socket = amqp_tcp_socket_new(connection);
  check(amqp_socket_open(socket, argv[1], atoi(argv[2])), "connecting");
  check(amqp_login(connection, argv[3], 0, 131072, 60, AMQP_SASL_METHOD_PLAIN, "guest", "guest").reply_type !=
            AMQP_RESPONSE_NORMAL, "the login");
  amqp_channel_open(connection, 1);
  check(amqp_get_rpc_reply(connection).reply_type != AMQP_RESPONSE_NORMAL, "opening a channel");
  amqp_confirm_select(connection, 1);

  char body[400];
  memset(body, 'x', sizeof body);
  amqp_bytes_t content = {sizeof body, body};
  amqp_basic_properties_t properties;
  properties._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_MESSAGE_ID_FLAG;
  properties.content_type = amqp_cstring_bytes("application/json");
  properties.delivery_mode = 2;
  properties.message_id = amqp_cstring_bytes("01a20070-4ff4-7e6d-abc1-db3d62ebb8f3");

  confirmed = calloc(count + 1, 1);
  const double started = now();
  for (uint64_t written = 1; written <= count; written++) {
    check(amqp_basic_publish(connection, 1, amqp_empty_bytes, amqp_cstring_bytes(argv[4]), 1, 0, &properties, content),
          "publishing");
    unconfirmed++;
    confirm(connection, window - 1);
  }
  confirm(connection, 0);
  printf("%.1f %.6f\n", count / (now() - started), cpu());
  amqp_connection_close(connection, AMQP_REPLY_SUCCESS);
  return 0;
}
