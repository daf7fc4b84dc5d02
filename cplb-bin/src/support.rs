//! Admits a configuration for `run` and for a reload.

use cplb_config::{Config, Severity};

use crate::exit::{Failure, Kind};

/// Logs the findings about `config` that do not keep it from running, and returns them for status. Backends of the
/// command line have to be in it already.
///
/// # Errors
/// [`Kind::Config`] with the first finding that does.
pub(crate) fn admit(config: &Config) -> Result<Vec<String>, Failure> {
    let (mut refusal, mut ignored) = (None, Vec::new());
    for finding in config.check_effective() {
        if finding.severity == Severity::Error {
            refusal.get_or_insert(Failure::new(Kind::Config, finding.message).help(finding.help));
            continue;
        }
        tracing::warn!(path = %finding.path, "{} ({})", finding.message, finding.help);
        ignored.push(format!("configuration: {} ({})", finding.message, finding.help));
    }
    refusal.map_or(Ok(ignored), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(spec: &str) -> Config {
        let text = format!("apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n{spec}");
        cplb_config::load(&text, "f.yaml")
            .unwrap_or_else(|errors| panic!("{}", errors.report().plain()))
            .config
    }

    #[test]
    fn only_errors_keep_a_configuration_from_running() {
        let ignored = admit(&config("  services: [{name: a, port: 6443}]\n")).unwrap();
        assert!(ignored[0].contains("no backend is configured for a"), "{ignored:?}");
        let services: String = (1..=64).map(|port| format!("{{name: s{port}, port: {port}}}, ")).collect();
        let spec = format!(
            "  virtualServers: [{{ipAddress: 10.0.0.100}}, {{ipAddress: 10.0.0.101}}]\n  services: [{services}]\n"
        );
        let Err(refusal) = admit(&config(&spec)) else { panic!("128 virtual servers have too few marks") };
        assert!(refusal.to_string().contains("127 or fewer"), "{refusal}");
    }
}
