// Doctor: what `banana doctor` looks at. Nothing here changes anything, but that a file and a record are written and
// removed, to see whether that can be done.
//
// Concepts: a check says what it found in `text`, and, if that is not well, what to do in `advice`.
// Threading: the io_context's single thread.
#pragma once

#include "controller/spikes.h"

namespace banana::controller {

bool bridge_nf_call();  // whether frames through this host's bridges pass iptables

class Doctor {
public:
    Doctor(Node& node, Corms& corms, Wires& wires, Spikes& spikes, std::string state_dir);
    asio::awaitable<Json> examine();  // {checks: [{name, ok, text, advice, warning?}]}

private:
    void add(const std::string& name, bool ok, const std::string& text, const std::string& advice);
    // Well, but not for long.
    void warn(const std::string& name, const std::string& text, const std::string& advice);
    void look_at_state();
    void look_at_certificates();
    void look_at_underlay();
    void look_at_libvirt();
    void look_at_tunnel();
    void look_at_peers();
    void look_at_corms();
    void look_at_devices();
    asio::awaitable<void> look_at_taps();
    void look_at_kernel();
    void look_at_senders();

    std::set<std::string> tunnel_hosts() const;  // peers that cannot do without a tunnel
    // "net0 of domain vm1", by what libvirt says of running domains; "" if nobody's.
    asio::awaitable<std::string> guest_of(std::string device);

    Node& node_;
    Corms& corms_;
    Wires& wires_;
    Spikes& spikes_;
    std::string state_dir_;
    Json peers_, checks_;
    std::set<std::string> gone_;  // adopted devices that are not there
};

}  // namespace banana::controller
