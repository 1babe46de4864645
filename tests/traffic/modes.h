// The program's modes; each returns an exit status. Ports: P control (TCP) and streams (UDP), P+1 UDP reflector,
// P+2 TCP echo.
//
// Control connection, a line each way, any number of requests:
//   hello                          -> ok
//   recv STREAM                    -> ok                  begin to count what arrives for STREAM
//   send STREAM PORT RATE SIZE     -> ok                  begin to send STREAM to the asking address
//   stop STREAM                    -> ok sent=... ...     end it; the sender's half of a report
//   stats STREAM SENT              -> ok received=... ... the receiver's half
//   drop STREAM                    -> ok
//   anything else                  -> error TEXT
#pragma once

#include <cstdint>
#include <string>

namespace traffic {

constexpr uint16_t kDefaultPort = 7700;
constexpr uint16_t kReflectorOffset = 1;
constexpr uint16_t kEchoOffset = 2;

struct Options {
    std::string mode;
    std::string peer;  // dotted IPv4
    uint16_t port = kDefaultPort;
    uint64_t rate = 1000;
    uint64_t count = 0;
    int size = 128;
    double seconds = 0;   // 0: until told to end
    double timeout = 15;  // for the peer to answer and the streams to flow
    int tcp_interval_ms = 2;
    bool until_eof = false;  // end when stdin is closed
    bool json = false;
};

int serve(const Options& options);
int run(const Options& options);
int send_stream(const Options& options);
int receive_stream(const Options& options);
int probe_df(const Options& options);

// Waits for SIGINT, SIGTERM, the end of stdin (if asked) or the time; whichever is first. Signals must be blocked
// by block_signals() before any thread is made.
void block_signals();
enum class Wake { signal, end_of_input, time };
Wake wait_for_end(bool until_eof, int64_t until_ns);

int complain(const std::string& what);  // "traffic: WHAT" to stderr; returns 1

}  // namespace traffic
