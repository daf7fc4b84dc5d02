//! The services and their backends.

use std::fmt::Write as _;

use maud::{Markup, html};

use crate::status::schema::{Backend, ConnectTimes, Service, Status};

use super::badge;
use super::samples::{SHOWN_BACKENDS, Samples};
use super::text::{age, bytes, grouped, plural};

pub(super) fn section(status: &Status, samples: &Samples) -> Markup {
    html! {
        section id="services" aria-labelledby="services-title" {
            h2 id="services-title" { "Services on this node" }
            @if status.services.is_empty() {
                p { "No service is balanced on this node." }
            }
            @for service in &status.services { (one(service, samples)) }
        }
    }
}

fn one(service: &Service, samples: &Samples) -> Markup {
    let up = service.backends.iter().filter(|backend| accepts(backend)).count();
    let class = match up {
        0 => "bad",
        _ if up < service.backends.len() => "warn",
        _ => "good",
    };
    let more = service.backends.len().saturating_sub(SHOWN_BACKENDS);
    html! {
        article {
            h3 { (service.name) " " small { "port " (service.port) } }
            p {
                (badge(class, &format!("{up} of {} up", service.backends.len())))
                " " (grouped(service.connections_active)) " open, "
                (grouped(service.connections_accepted)) " accepted, "
                (grouped(service.connections_refused)) " refused · " (service.balance)
                @for delivery in service.delivery.iter().filter(|delivery| delivery.reason.is_some()) {
                    " · " (delivery.virtual_ip) " by " (delivery.mode) ": "
                    (delivery.reason.as_deref().unwrap_or_default())
                }
            }
            div class="scroll" tabindex="0" role="region" aria-label={ "Backends of " (service.name) } {
                table {
                    thead {
                        tr {
                            th scope="col" { "Backend" }
                            th scope="col" { "State" }
                            th scope="col" { "Since" }
                            th scope="col" { "Latest check" }
                            th scope="col" class="number" { "Open" }
                            th scope="col" class="number" { "Total" }
                            th scope="col" class="number" { "Failed" }
                            th scope="col" { "Connect time" }
                            th scope="col" class="number" { "From clients" }
                            th scope="col" class="number" { "To clients" }
                            th scope="col" { "New per second, 3 min" }
                        }
                    }
                    tbody {
                        @for backend in service.backends.iter().take(SHOWN_BACKENDS) {
                            (row(backend, &samples.rates(&service.name, Some(&backend.address))))
                        }
                    }
                }
            }
            @if more > 0 {
                p class="note" { (plural(more, "more")) ": see " code { "cplb status" } "." }
            }
        }
    }
}

fn row(backend: &Backend, rates: &[f32]) -> Markup {
    html! {
        tr {
            th scope="row" { (backend.address) }
            td { (badge(class(&backend.state), &backend.state)) }
            td { (age(backend.since_seconds)) }
            td {
                @if let Some(reason) = &backend.reason { (reason) ", " }
                @match backend.last_check_seconds_ago {
                    Some(ago) => { (age(ago)) " ago" },
                    None => "none yet",
                }
            }
            td class="number" { (grouped(backend.connections_active)) }
            td class="number" { (grouped(backend.connections_total)) }
            td class="number" { (grouped(backend.connect_failures)) }
            td { (connect_times(&backend.connect_times)) }
            td class="number" { (bytes(backend.bytes_from_clients)) }
            td class="number" { (bytes(backend.bytes_to_clients)) }
            td { (sparkline(rates)) }
        }
    }
}

/// The times that one half and 99 of 100 connects did not exceed.
fn connect_times(times: &ConnectTimes) -> Markup {
    let count: u64 = times.classes.iter().map(|class| class.count).sum();
    let quantile = |share: f64| {
        let mut left = (count as f64 * share).ceil() as u64;
        let class = times.classes.iter().find(|class| {
            let is_it = class.count >= left;
            left = left.saturating_sub(class.count);
            is_it
        });
        class.map(|class| {
            class.up_to_seconds.map_or_else(|| "> 2 s".to_owned(), |bound| format!("≤ {} ms", bound * 1000.0))
        })
    };
    html! {
        @match (quantile(0.5), quantile(0.99)) {
            (Some(half), Some(most)) if count > 0 => { (half) small { " (99 %: " (most) ")" } },
            _ => "–",
        }
    }
}

fn accepts(backend: &Backend) -> bool {
    matches!(backend.state.as_str(), "up" | "suspect")
}

fn class(state: &str) -> &'static str {
    match state {
        "up" => "good",
        "down" => "bad",
        _ => "warn",
    }
}

/// The size of a sparkline; a sample is a point wide and a half.
const WIDTH: f32 = 135.0;
const HEIGHT: f32 = 24.0;

/// The course of a rate with the latest value in words.
fn sparkline(rates: &[f32]) -> Markup {
    let (Some(last), most) = (rates.last(), rates.iter().copied().fold(0.0, f32::max)) else {
        return html! { span class="note" { "measuring" } };
    };
    let step = 1.5;
    let start = WIDTH - step * (rates.len() - 1) as f32;
    let mut points = String::new();
    for (index, rate) in rates.iter().enumerate() {
        let height = if most > 0.0 { (HEIGHT - 4.0) * rate / most } else { 0.0 };
        let _ = write!(points, "{:.1},{:.1} ", start + step * index as f32, HEIGHT - 2.0 - height);
    }
    html! {
        svg class="sparkline" viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } aria-hidden="true" {
            polyline points=(points.trim_end()) {}
        }
        " " (format!("{last:.1}"))
        @if most > 0.0 { small { " (most " (format!("{most:.1}")) ")" } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::schema::ConnectClass;

    #[test]
    fn connect_times_are_the_bounds_of_their_classes() {
        let classes = [(Some(0.0005), 50), (Some(0.001), 49), (None, 1)];
        let class = |(up_to_seconds, count)| ConnectClass { up_to_seconds, count };
        let times = ConnectTimes { sum_seconds: 0.0, classes: classes.map(class).into() };
        assert_eq!(connect_times(&times).into_string(), "≤ 0.5 ms<small> (99 %: ≤ 1 ms)</small>");
        let slow = ConnectTimes { classes: vec![class((None, 1))], ..times };
        assert_eq!(connect_times(&slow).into_string(), "&gt; 2 s<small> (99 %: &gt; 2 s)</small>");
        assert_eq!(connect_times(&ConnectTimes::default()).into_string(), "–");
    }

    #[test]
    fn a_sparkline_ends_at_the_right_with_its_latest_value() {
        let text = sparkline(&[0.0, 10.0, 5.0]).into_string();
        assert!(text.contains("points=\"132.0,22.0 133.5,2.0 135.0,12.0\""), "{text}");
        assert!(text.contains(" 5.0") && text.contains("most 10.0"), "{text}");
        assert!(sparkline(&[]).into_string().contains("measuring"));
        assert!(sparkline(&[0.0]).into_string().contains("135.0,22.0"));
    }
}
