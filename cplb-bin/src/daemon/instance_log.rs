//! The fields that name an instance in log lines.

/// The fields of one instance: the same in every line about it, so that all of them can be found by any of the fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct InstanceFields {
    /// The virtual IPs, separated by commas.
    pub(crate) vip: String,
    /// The name of the interface, or its selector in the configuration while there is no such interface.
    pub(crate) interface: String,
    pub(crate) vrid: u32,
}

/// Logs a line about an instance at a level of `tracing`, with [`InstanceFields`] before the line's own fields. A macro,
/// since the limit of log lines tells kinds of lines apart by the place that logs them.
macro_rules! instance_log {
    ($level:ident, $instance:expr, $($line:tt)+) => {{
        let $crate::daemon::instance_log::InstanceFields { vip, interface, vrid } = &$instance;
        tracing::$level!(%vip, %interface, vrid, $($line)+)
    }};
}

pub(crate) use instance_log;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logging::testing::storm;

    #[test]
    fn a_line_about_an_instance_names_vip_interface_and_vrid() {
        let (vip, interface) = ("10.0.0.100,fd00::100".to_owned(), "eth0".to_owned());
        let instance = InstanceFields { vip, interface, vrid: 51 };
        let mut is_first = true;
        let written = storm(1, |_| {
            if std::mem::take(&mut is_first) {
                instance_log!(info, instance, took_ms = 3, "virtual IPs installed");
            }
        });
        let line = "virtual IPs installed vip=10.0.0.100,fd00::100 interface=eth0 vrid=51 took_ms=3";
        assert!(written.lines[0].contains(line), "{:?}", written.lines);
    }
}
