import { streamChat, type ErrorResponse } from './generated/index.js';

const [baseUrl, message = ''] = process.argv.slice(2);
const stop = new AbortController();
process.once('SIGINT', () => stop.abort()); // closing the connection stops the model

function fail({ code, detail, correlation_id }: ErrorResponse): never {
  console.error(`${code}: ${detail} [${correlation_id}]`);
  process.exit(1);
}

try {
  const { stream } = await streamChat({
    baseUrl,
    body: { message },
    signal: stop.signal,
    sseMaxRetryAttempts: 1, // only one attempt, because each one is paid for
    onSseError: (error) => { throw error; }, // otherwise, a broken stream looks complete
    fetch: async (...request) => {
      const response = await fetch(...request);
      return response.ok ? response : fail(await response.json()); // hey-api's own error would have no body
    },
  });
  let reason = 'the connection broke off';
  for await (const chunk of stream) {
    switch (chunk.type) {
      case 'start': console.error(`[${chunk.model}, ${chunk.correlation_id}]`); break;
      case 'reasoning': break; // comes only to requests with `include_reasoning`
      case 'text': process.stdout.write(chunk.text); break;
      case 'done': reason = chunk.finish_reason; break;
      case 'error': fail(chunk.error);
      default: chunk satisfies never;
    }
  }
  if (reason !== 'stop') throw new Error(`The answer is incomplete: ${reason}.`);
} catch (error) {
  if (!stop.signal.aborted) throw error;
  process.exitCode = 130;
}
