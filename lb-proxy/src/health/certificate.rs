//! Explanations of rejected certificates, for people.

use rustls::{CertificateError, Error, InconsistentKeys};

/// Explains the TLS library's error; its own texts contain names of its values.
pub(super) fn explain(error: &CertificateError) -> String {
    use CertificateError as E;
    let text = match error {
        E::BadEncoding => "it is not a valid X.509 certificate",
        E::Expired | E::ExpiredContext { .. } => "it has expired",
        E::NotValidYet | E::NotValidYetContext { .. } => "it is not valid yet",
        E::Revoked => "it is revoked",
        E::UnhandledCriticalExtension => "it has a critical extension that is not known",
        E::UnknownIssuer => "the certificate authority did not sign it",
        E::BadSignature => "its signature is wrong",
        E::NotValidForName => "it is for another name",
        E::NotValidForNameContext { presented, .. } => {
            let names: Vec<&str> = presented.iter().map(|name| plain_name(name)).collect();
            return format!("it is for other names: {}", names.join(", "));
        }
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
            "it is not for this purpose (extended key usage)"
        }
        E::UnsupportedSignatureAlgorithmContext { .. }
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "its signature algorithm is not supported"
        }
        _ => "it is not supported by the TLS library",
    };
    text.to_owned()
}

/// Explains a TLS error where the library's own text contains names of its values: rejected certificates, and keys that
/// do not match.
pub fn explain_error(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => explain(error),
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            "the key is not that of the certificate".to_owned()
        }
        Error::InconsistentKeys(_) => "the key cannot be compared with the certificate".to_owned(),
        other => other.to_string(),
    }
}

/// Extracts a name from the library's debug output, such as `DnsName("kubernetes")`.
fn plain_name(debug: &str) -> &str {
    let inner = debug.split_once('(').and_then(|(_, inner)| inner.strip_suffix(')')).unwrap_or(debug);
    inner.trim_matches('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_errors_are_explained_without_library_values() {
        let other_name = CertificateError::NotValidForNameContext {
            expected: rustls::pki_types::ServerName::try_from("kubernetes").unwrap(),
            presented: vec!["DnsName(\"other\")".into(), "IpAddress(10.0.0.1)".into()],
        };
        assert_eq!(explain(&other_name), "it is for other names: other, 10.0.0.1");
        for error in [
            CertificateError::BadEncoding,
            CertificateError::Expired,
            CertificateError::UnknownIssuer,
            CertificateError::ExpiredRevocationList,
        ] {
            let text = explain_error(&error.clone().into());
            assert!(text.starts_with("it ") || text.starts_with("the "), "{text}");
            assert!(!text.contains(&format!("{error:?}")), "{text}");
        }
        let keys = Error::InconsistentKeys(InconsistentKeys::KeyMismatch);
        assert_eq!(explain_error(&keys), "the key is not that of the certificate");
    }
}
