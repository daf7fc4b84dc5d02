//! Virtual IP addresses as kernel leases: desired-versus-observed management of VIPs, dummy links, address labels and sysctls on rtnetlink.
