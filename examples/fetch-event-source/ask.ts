import { fetchEventSource } from '@microsoft/fetch-event-source';

type Problem = { code: string; detail: string; correlation_id: string };
type Chunk =
  | { type: 'start'; correlation_id: string }
  | { type: 'text'; text: string }
  | { type: 'done'; finish_reason: string }
  | { type: 'error'; error: Problem };

function refusal({ code, detail, correlation_id }: Problem): Error {
  return new Error(`${code}: ${detail} [${correlation_id}]`);
}

/** Shows each text as it arrives; ends when `stop` is aborted; throws if the answer is incomplete. */
export async function ask(url: string, message: string, show: (text: string) => void, stop: AbortSignal): Promise<void> {
  let id = 'no correlation id'; // to quote to the operator
  let reason = 'the connection broke off';
  await fetchEventSource(`${url}/chat`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({ message }),
    signal: stop, // closing the connection stops the model
    openWhenHidden: true, // or the package stops when the tab is hidden, and asks again when it is shown
    async onopen(response) {
      if (response.ok) return;
      const problem: Problem | undefined = await response.json().catch(() => undefined); // a proxy's error is HTML
      throw problem?.code ? refusal(problem) : new Error(`HTTP ${response.status}, not from Parley`);
    },
    onmessage({ data }) {
      const chunk: Chunk = JSON.parse(data);
      if (chunk.type === 'start') id = chunk.correlation_id;
      if (chunk.type === 'text') show(chunk.text);
      if (chunk.type === 'done') reason = chunk.finish_reason;
      if (chunk.type === 'error') throw refusal(chunk.error);
    },
    onerror(error) { // it has to throw, or the package sends the request again
      throw error instanceof TypeError ? new Error(`The connection failed: ${error.message} [${id}]`) : error;
    },
  });
  if (!stop.aborted && reason !== 'stop') throw new Error(`The answer is incomplete: ${reason}. [${id}]`);
}
