//! Prints the kernel's IPVS table, with what passed through it.

use std::error::Error;

use ipvs::Client;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = Client::spawn()?;
    let info = client.info().await?;
    println!("IPVS {}, {} rows in the connection table", info.version, info.connection_table_size);
    for entry in client.services().await? {
        let (service, stats) = (&entry.service, entry.stats());
        println!("{} {}: {} connections", service.key(), service.scheduler, stats.connections);
        for entry in client.destinations(&service.key()).await? {
            let destination = &entry.destination;
            println!(
                "  {} {} weight {}: {} active, {} bytes in, {} bytes out",
                destination.key,
                destination.method,
                destination.weight,
                entry.active_connections,
                entry.stats().incoming_bytes,
                entry.stats().outgoing_bytes,
            );
        }
    }
    Ok(())
}
