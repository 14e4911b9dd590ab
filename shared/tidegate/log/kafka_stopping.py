"""How clients of aiokafka are stopped: beside whoever stops them, within a deadline, and whatever becomes of it.

A consumer that is stopped cancels its fetches and awaits them. Where one waits to be tried again, as in every outage,
the consumer's own `stop` then ends as if it had been cancelled, with connections open; awaited directly, it would end
its caller's task as cancelled, too, and of a cancelled task nobody hears. Counterparts: `kafka.py`, `kafka_reader.py`.
"""

import asyncio
import contextlib

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer


async def stopped(client: AIOKafkaConsumer | AIOKafkaProducer, deadline_s: float) -> None:
    """As far as that goes in time; the cluster notices anyway. Raises nothing but the caller's own cancellation."""
    stopping = asyncio.create_task(_stop(client), name="stop a client of Kafka")
    try:
        await asyncio.wait((stopping,), timeout=deadline_s)
    finally:
        stopping.cancel()


async def _stop(client: AIOKafkaConsumer | AIOKafkaProducer) -> None:
    with contextlib.suppress(Exception):
        try:
            await client.stop()
        finally:
            if isinstance(client, AIOKafkaConsumer):
                await client._client.close()
