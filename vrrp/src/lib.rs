//! VRRPv2/v3 codec, ARP/NDP announcements and a sans-IO election state machine, with an optional real-time runner.
